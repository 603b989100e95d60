-- A stream that is kept for whoever asks for it again: a list, its head first, then what was sent.
-- KEYS[1] the list. ARGV[1] what to do; ARGV[2] the head, which names its owner; ARGV[3] for how many ms to keep it.
-- claim: returns the head that stands there, or false where it is ours now.
-- append: adds ARGV[5...] behind the first ARGV[4] elements, once: it may be said again by who had no answer.
-- replace: puts ARGV[4] in the place of all that was; drop: forgets it.
-- Each of these returns 1, or 0 where it is not ours.
local key, what, head, keep = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local standing = redis.call('LINDEX', key, 0)
if what == 'claim' then
  if standing then
    return standing
  end
  redis.call('RPUSH', key, head)
  redis.call('PEXPIRE', key, keep)
  return false
end
if standing ~= head then
  return 0
end
if what == 'drop' then
  redis.call('DEL', key)
  return 1
end
if what == 'replace' then
  redis.call('DEL', key)
  redis.call('RPUSH', key, head, ARGV[4])
elseif #ARGV > 4 and redis.call('LLEN', key) == tonumber(ARGV[4]) then
  redis.call('RPUSH', key, unpack(ARGV, 5))
end
redis.call('PEXPIRE', key, keep)
return 1
