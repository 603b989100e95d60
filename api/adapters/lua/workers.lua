-- The workers of the fleet, each as a lease that it renews.
-- KEYS[1] sorted set: worker -> end of its lease in ms of Redis' clock; ARGV: the worker, lease in ms
-- Returns how many there are, and how many of them come before this one by name.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local names = redis.call('ZRANGE', KEYS[1], 0, -1)
local before = 0
for _, name in ipairs(names) do
  if name < ARGV[1] then
    before = before + 1
  end
end
return { #names, before }
