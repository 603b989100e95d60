-- Give a permit's slots back, and of its allowance what was not used.
-- KEYS as in acquire.lua; ARGV permit id, n, tokens used
local caps = tonumber(ARGV[2])
for i = 1, caps do
  redis.call('ZREM', KEYS[i], ARGV[1])
end
local allowance = KEYS[caps + 1]
if allowance then
  redis.call('HDEL', allowance, ARGV[1])
  if redis.call('HEXISTS', allowance, 'spent') == 1 then -- else Redis was emptied, and the ledger knows
    redis.call('HINCRBY', allowance, 'spent', ARGV[3])
  end
end
return 1
