-- All limits of one tenant, in Redis: what api/core/limits.py says, step by step and name by name.
-- KEYS[1] is the tenant's set of live streams, sg:{tenant}:streams; all other keys of the tenant begin like
-- it, so they are in the same slot of a Redis Cluster:
--   streams, streams:...   sorted sets, one a cap: permit -> end of its lease
--   a rate                 hash: debt in millionths of a 60th, at
--   a budget               hash: spent, reserved, late
--   held                   hash: permit -> tokens of output granted ("*": told), then a line for each budget
--   lapsed:PERMIT          the same, of a worker that was not heard of for a lease, or of what has ended
--   waiting, waiting:for, waiting:until    the queue: tickets, counters waited for, leases
--   waiting:n              how many wait for a counter
--   pace, known, shadow    when streams end; since when Redis knows what runs; what shadows would refuse
-- Times are microseconds of Redis' clock. ARGV[1] says which call it is; each reads on from ARGV[2].
local MINUTE, NEVER, MOST = 60000000, 1e15, 4503599627370496
local REFUSED, GRANTED, UNKNOWN, WAITING, SETTLING = 0, 1, 2, 3, 4
local ASKED_US = 3000000 -- the ledger answers within two seconds, or not at all
local LAPSED_S, ENDED_S, HELD_S, KNOWN_S = 3600, 300, 3456000, 86400
local base = string.sub(KEYS[1], 1, -8)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local position = 1
local call, floor, max, min = redis.call, math.floor, math.max, math.min

local function word()
  position = position + 1
  return ARGV[position]
end

local function number()
  return tonumber(word())
end

local function digits(value)
  return string.format('%.0f', value + 0) -- of minus zero Redis makes no number
end

local function demands()
  local list = {}
  for i = 1, number() do
    list[i] = {
      shape = word(), counter = word(), amount = number(), base = number(), each = number(),
      keep = number(), shadow = word() == '1', of = word(), name = word(),
    }
  end
  return list
end

-- --- held credit -----------------------------------------------------------------------------------

local function unpack_held(text)
  if not text then
    return nil
  end
  local tokens, told = string.match(text, '^(%d+)(%*?)')
  local held = { tokens = tonumber(tokens), told = told == '*', rows = {} }
  for counter, reserved, used in string.gmatch(text, '\n([^\t]+)\t(%d+)\t(%d+)') do
    held.rows[#held.rows + 1] = { counter = counter, reserved = tonumber(reserved), used = tonumber(used) }
  end
  return held
end

local function pack_held(held)
  local parts = { digits(held.tokens) .. (held.told and '*' or '') }
  for _, row in ipairs(held.rows) do
    parts[#parts + 1] = '\n' .. row.counter .. '\t' .. digits(row.reserved) .. '\t' .. digits(row.used)
  end
  return table.concat(parts)
end

local function row_of(held, counter)
  for _, row in ipairs(held and held.rows or {}) do
    if row.counter == counter then
      return row
    end
  end
end

local function get_held(permit)
  return unpack_held(call('HGET', base .. 'held', permit))
end

local function put_held(permit, held)
  call('HSET', base .. 'held', permit, pack_held(held))
  call('EXPIRE', base .. 'held', HELD_S)
end

local function get_lapsed(permit)
  return unpack_held(call('GET', base .. 'lapsed:' .. permit))
end

-- Of a permit that may be heard of again, what is counted already.
local function remember(permit, held, seconds)
  if held and #held.rows > 0 then
    call('SET', base .. 'lapsed:' .. permit, pack_held(held), 'EX', seconds)
  end
end

-- --- counters --------------------------------------------------------------------------------------

local function reserve(counter, amount)
  call('HINCRBY', base .. counter, 'reserved', digits(amount))
end

local function give_back(counter, amount)
  if call('EXISTS', base .. counter) == 1 then
    reserve(counter, -amount)
  end
end

-- Returns what was counted: nothing, where the ledger has yet to be asked.
local function spend(counter, amount)
  for _, field in ipairs({ 'spent', 'late' }) do
    if call('HEXISTS', base .. counter, field) == 1 then
      call('HINCRBY', base .. counter, field, digits(amount))
      return amount
    end
  end
  return 0
end

local function debt_of(demand)
  local rate = call('HMGET', base .. demand.counter, 'debt', 'at')
  if not rate[1] then
    return 0
  end
  return max(0, rate[1] - max(0, now - rate[2]) * demand.amount)
end

local function adjust(demand, units)
  local debt = max(0, debt_of(demand) + units * MINUTE)
  call('HSET', base .. demand.counter, 'debt', digits(debt), 'at', digits(now))
  call('PEXPIRE', base .. demand.counter, digits(floor(debt / max(demand.amount, 1) / 1000) + 60000))
end

local function gap()
  return tonumber(call('HGET', base .. 'pace', 'gap') or 1000000)
end

local function note_free()
  local at = tonumber(call('HGET', base .. 'pace', 'at') or now)
  if now > at then
    local new = min(now - at, 30000000)
    local before = tonumber(call('HGET', base .. 'pace', 'gap') or new)
    call('HSET', base .. 'pace', 'gap', digits(before + floor((new - before) / 8)))
  end
  call('HSET', base .. 'pace', 'at', digits(now))
  call('EXPIRE', base .. 'pace', LAPSED_S)
end

local function taken(counter)
  return call('ZCOUNT', base .. counter, '(' .. digits(now), '+inf')
end

local function lease(counter, permit, lease_us)
  call('ZADD', base .. counter, digits(now + lease_us), permit)
  if counter ~= 'streams' then -- those of the dead: who is in `streams` has more to be seen to
    call('ZREMRANGEBYSCORE', base .. counter, '-inf', digits(now))
  end
  call('EXPIRE', base .. counter, HELD_S)
end

-- What a permit is known to have used counts as spent, until it is heard of again.
local function lapse(permit)
  local held = get_held(permit)
  if not held then
    return
  end
  for _, row in ipairs(held.rows) do
    give_back(row.counter, row.reserved)
    local sure = call('HEXISTS', base .. row.counter, 'spent') == 1
    row.used = spend(row.counter, row.used) * (sure and 1 or 0) -- `late` may be begun anew
  end
  remember(permit, held, LAPSED_S)
  call('HDEL', base .. 'held', permit)
end

-- Dead workers' streams: their leases are over.
local function purge()
  for _, permit in ipairs(call('ZRANGEBYSCORE', KEYS[1], '-inf', digits(now))) do
    lapse(permit)
    call('ZREM', KEYS[1], permit)
  end
end

-- How much more a limit has, and how long to wait where that does not suffice.
local function room_of(demand, least, whole)
  local need = demand.base + demand.each * (whole and demand.shape == 'r' and whole or least)
  if demand.shape == 'c' then
    local free = demand.amount - taken(demand.counter)
    return { units = free, wait = free > 0 and 0 or gap() }
  end
  if demand.shape == 'b' then
    local budget = call('HMGET', base .. demand.counter, 'spent', 'reserved')
    local left = demand.amount - (budget[1] or 0) - (budget[2] or 0)
    return { units = left, wait = left >= need and 0 or NEVER }
  end
  local free = demand.amount * MINUTE - debt_of(demand)
  local room = { units = floor(free / MINUTE), wait = 0 }
  if free < need * MINUTE then
    room.wait = need > demand.amount and NEVER or -floor(-(need * MINUTE - free) / max(demand.amount, 1))
  end
  return room
end

local function rooms_of(list, least, whole)
  local rooms = {}
  for i, demand in ipairs(list) do
    rooms[i] = room_of(demand, least, whole)
  end
  return rooms
end

local function worst_of(list, rooms)
  local worst
  for i, demand in ipairs(list) do
    if rooms[i].wait > 0 and not demand.shadow and (not worst or rooms[i].wait > rooms[worst].wait) then
      worst = i
    end
  end
  return worst
end

local function credit_of(list, rooms, least, most, share)
  local tokens, allowed = most, MOST
  for i, demand in ipairs(list) do
    if demand.each > 0 and not demand.shadow then
      local free = rooms[i].units - demand.base
      tokens = min(tokens, floor(free / demand.each))
      if demand.shape == 'b' then
        allowed = min(allowed, floor(free / demand.each))
        tokens = min(tokens, max(least, floor(floor(free / share) / demand.each)))
      end
    end
  end
  return tokens, allowed
end

-- How many tokens of output a permit that has so many of them may have.
local function allowed_of(list, tokens)
  for _, demand in ipairs(list) do
    demand.base = 0
  end
  local _, more = credit_of(list, rooms_of(list, 0), 0, 0, 1)
  return min(MOST, tokens + max(0, more))
end

local function charge(demand, room, amount, held)
  if demand.shape == 'b' then
    reserve(demand.counter, amount)
    call('EXPIRE', base .. demand.counter, demand.keep)
    local row = row_of(held, demand.counter)
    if row then
      row.reserved = row.reserved + amount
    else
      held.rows[#held.rows + 1] = { counter = demand.counter, reserved = amount, used = 0 }
    end
  elseif demand.shape == 'r' and not (demand.shadow and room.wait > 0) then
    adjust(demand, amount)
  end
end

-- What the ledger says was spent, by demand ("": not asked). Returns what it has yet to say.
local function ask_ledger(list, spent)
  local unknown = {}
  for i, demand in ipairs(list) do
    local counter = base .. demand.counter
    if demand.shape == 'b' and call('HEXISTS', counter, 'spent') == 0 then
      local late = call('HMGET', counter, 'late', 'asked')
      if spent[i] ~= '' and late[1] then
        call('HSET', counter, 'spent', digits(spent[i] + late[1]))
        call('HDEL', counter, 'late', 'asked')
      else
        if not late[1] or math.abs(now - late[2]) > ASKED_US then -- whoever asked then has no answer
          call('HSET', counter, 'late', 0, 'asked', digits(now))
        end
        unknown[#unknown + 1] = i - 1
      end
      call('EXPIRE', counter, demand.keep)
    end
  end
  return unknown
end

local function reply(verdict, tokens, allowed, at, wait, list)
  local answer = { verdict, tokens, allowed, at - 1, wait }
  for _, demand in ipairs(list) do
    local room = room_of(demand, 0)
    answer[#answer + 1] = max(0, room.units)
    answer[#answer + 1] = demand.shape == 'r' and -floor(-debt_of(demand) / max(demand.amount, 1)) or 0
  end
  return answer
end

-- --- the queue -------------------------------------------------------------------------------------

local function waits_no_more(permit)
  local counter = call('HGET', base .. 'waiting:for', permit)
  if counter and call('HINCRBY', base .. 'waiting:n', counter, -1) <= 0 then
    call('HDEL', base .. 'waiting:n', counter)
  end
end

local function leave_queue(permit)
  if call('ZREM', base .. 'waiting', permit) == 1 then
    waits_no_more(permit)
    call('ZREM', base .. 'waiting:until', permit)
    call('HDEL', base .. 'waiting:for', permit)
  end
end

local function purge_queue()
  for _, permit in ipairs(call('ZRANGEBYSCORE', base .. 'waiting:until', '-inf', digits(now))) do
    leave_queue(permit)
  end
end

-- Which demand refuses, or has somebody waiting for it who came before.
local function blocked_by(permit, list, rooms)
  local worst = worst_of(list, rooms)
  if worst then
    return worst
  end
  local rank, ahead = call('ZRANK', base .. 'waiting', permit), {}
  if rank == 0 then
    return nil
  end
  for _, other in ipairs(rank and call('ZRANGE', base .. 'waiting', 0, rank - 1) or {}) do
    ahead[call('HGET', base .. 'waiting:for', other)] = true
  end
  for i, demand in ipairs(list) do
    local waited = ahead[demand.counter]
    if not rank then -- a newcomer is behind all of them
      waited = call('HEXISTS', base .. 'waiting:n', demand.counter) == 1
    end
    if waited and not demand.shadow then
      return i
    end
  end
end

local function queue(permit, list, at, wait, max_waiters, waiter_us)
  local known = call('ZSCORE', base .. 'waiting', permit)
  local verdict, ticket = REFUSED, tonumber(known or 0)
  if wait < NEVER and (known or call('ZCARD', base .. 'waiting') < max_waiters) then
    if not known then
      local last = call('ZREVRANGE', base .. 'waiting', 0, 0, 'WITHSCORES')
      ticket = (last[2] or 0) + 1
      call('ZADD', base .. 'waiting', digits(ticket), permit)
    end
    waits_no_more(permit)
    call('HINCRBY', base .. 'waiting:n', list[at].counter, 1)
    call('HSET', base .. 'waiting:for', permit, list[at].counter)
    call('ZADD', base .. 'waiting:until', digits(now + waiter_us), permit)
    for _, name in ipairs({ 'waiting', 'waiting:for', 'waiting:until', 'waiting:n' }) do
      call('EXPIRE', base .. name, LAPSED_S)
    end
    verdict = WAITING
  else
    leave_queue(permit)
    ticket = 0
  end
  return reply(verdict, ticket, MOST, at, wait > 0 and wait or gap(), list)
end
