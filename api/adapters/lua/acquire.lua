-- Take one slot of a tenant, if fewer than its cap are taken.
-- KEYS[1] sorted set: permit id -> lease expiry in ms of Redis time
-- ARGV    permit id, cap, lease in ms
-- Returns {1, taken} or {0, ms until the first lease could expire}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local taken = redis.call('ZCARD', KEYS[1])
if taken >= tonumber(ARGV[2]) then
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return {0, first[2] and (tonumber(first[2]) - now) or 0}
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return {1, taken + 1}
