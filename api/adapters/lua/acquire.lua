-- Take one slot under each cap, and tokens of an allowance: all or nothing.
-- KEYS[1..n]  sorted sets, the tenant's first: permit id -> lease expiry in ms of Redis time
-- KEYS[n+1]   only with an allowance, a hash: "spent" -> tokens, permit id -> tokens reserved
-- ARGV        permit id, lease in ms, n, the n caps; then total, least, most, spent (-1: not known), ttl in s
-- The same again, because its answer was lost, takes nothing more.
-- Returns {1, tokens granted}, {0, which cap is full}, {0, 0} for an allowance that does not suffice,
-- or {2} where it is not known how much of the allowance is spent.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local permit, lease, caps = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 1, caps do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  if redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[3 + i]) and not redis.call('ZSCORE', KEYS[i], permit) then
    return {0, i}
  end
end
local granted = 0
local allowance = KEYS[caps + 1]
if allowance then
  local total, least, most = tonumber(ARGV[4 + caps]), tonumber(ARGV[5 + caps]), tonumber(ARGV[6 + caps])
  local spent = tonumber(ARGV[7 + caps])
  if redis.call('HEXISTS', allowance, 'spent') == 0 then
    if spent < 0 then
      return {2}
    end
    redis.call('HSET', allowance, 'spent', spent)
  end
  redis.call('EXPIRE', allowance, ARGV[8 + caps])
  local left = total
  local fields = redis.call('HGETALL', allowance)
  for i = 1, #fields, 2 do
    left = left - (fields[i] == permit and 0 or tonumber(fields[i + 1]))
    if fields[i] ~= 'spent' and not redis.call('ZSCORE', KEYS[1], fields[i]) then
      redis.call('HDEL', allowance, fields[i]) -- of a dead worker: nobody knows what it did not use
      redis.call('HINCRBY', allowance, 'spent', fields[i + 1])
    end
  end
  if left < least then
    return {0, 0}
  end
  granted = math.min(left, most)
  redis.call('HSET', allowance, permit, granted)
end
for i = 1, caps do
  redis.call('ZADD', KEYS[i], now + lease, permit)
  if redis.call('PTTL', KEYS[i]) < lease then
    redis.call('PEXPIRE', KEYS[i], lease)
  end
end
return {1, granted}
