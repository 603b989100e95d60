-- Renew the leases of one worker's live streams of one tenant.
-- KEYS[1] sorted set: permit id -> lease expiry in ms of Redis time
-- ARGV    cap, lease in ms, permit ids...
-- Returns the ids that are lost: their lease had expired, and the slots are taken by others. An expired
-- lease whose slot is still free is registered again (Redis was emptied, or the worker was slow).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local expiry = now + ARGV[2]
local missing, lost = {}, {}
for i = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], expiry, ARGV[i])
  else
    missing[#missing + 1] = ARGV[i]
  end
end
local free = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1])
for _, permit in ipairs(missing) do
  if free > 0 then
    redis.call('ZADD', KEYS[1], expiry, permit)
    free = free - 1
  else
    lost[#lost + 1] = permit
  end
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return lost
