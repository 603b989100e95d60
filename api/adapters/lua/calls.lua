-- The calls; the words are in limits.lua, which is sent before it as one script.

local calls = {}

function calls.acquire()
  local permit, lease_us, waiter_us, settle_us = word(), number(), number(), number()
  local least, most, share, running, max_waiters = number(), number(), number(), number(), number()
  local whole = word() == '1' and most
  local list, spent = demands(), {}
  for i = 1, #list do
    spent[i] = word()
  end
  purge()
  local queued = call('EXISTS', base .. 'waiting') == 1
  if queued then
    purge_queue()
  end
  if call('ZSCORE', KEYS[1], permit) then -- the same again: its answer was lost
    local held = get_held(permit)
    local tokens = held and held.tokens or most
    return reply(GRANTED, tokens, held and allowed_of(list, tokens) or MOST, 1, 0, list)
  end
  local unknown = ask_ledger(list, spent)
  local known = call('GET', base .. 'known')
  if not known and running < 0 then
    table.insert(unknown, 1, -1)
  end
  if #unknown > 0 then
    return { UNKNOWN, unpack(unknown) }
  end
  if not known then
    known = now + (running > 0 and settle_us or 0)
    call('SET', base .. 'known', digits(known), 'EX', KNOWN_S)
  end
  local settling = known - now
  if settling > 0 and settling <= settle_us then
    return { SETTLING, 0, MOST, 0, settling }
  end
  local rooms = rooms_of(list, least, whole)
  local at = queued and blocked_by(permit, list, rooms) or worst_of(list, rooms)
  if at then
    return queue(permit, list, at, rooms[at].wait, max_waiters, waiter_us)
  end
  if queued then
    leave_queue(permit)
  end
  local tokens, allowed = credit_of(list, rooms, least, most, share)
  local held, credit = { tokens = tokens, rows = {} }, false
  for i, demand in ipairs(list) do
    if demand.shadow and rooms[i].wait > 0 then
      call('HINCRBY', base .. 'shadow', demand.of .. ':' .. demand.name, 1)
      call('EXPIRE', base .. 'shadow', HELD_S)
    end
    if demand.shape == 'c' then
      lease(demand.counter, permit, lease_us)
    else
      charge(demand, rooms[i], demand.base + demand.each * tokens, held)
      credit = credit or demand.each > 0
    end
  end
  if credit then
    put_held(permit, held)
  end
  return reply(GRANTED, tokens, allowed, 1, 0, list)
end

function calls.extend()
  local permit, least, most, share = word(), number(), number(), number()
  local list, spent = demands(), {}
  for i, demand in ipairs(list) do
    spent[i] = word()
    demand.base = 0
  end
  local held = get_held(permit)
  if not held then
    return { UNKNOWN, -1 }
  end
  local unknown = ask_ledger(list, spent)
  if #unknown > 0 then
    return { UNKNOWN, unpack(unknown) }
  end
  local rooms = rooms_of(list, least)
  local at = worst_of(list, rooms)
  if at then
    return { REFUSED, 0, MOST, at - 1, rooms[at].wait }
  end
  local tokens, allowed = credit_of(list, rooms, least, most, share)
  for i, demand in ipairs(list) do
    charge(demand, rooms[i], demand.each * tokens, held)
  end
  held.tokens = held.tokens + tokens
  put_held(permit, held)
  return { GRANTED, tokens, allowed, 0, 0 }
end

-- What a worker says that a permit has: news after an outage, and where this Redis forgot it.
local function hold(permit, told)
  local known = get_held(permit)
  if known and #told.rows == 0 then
    return
  end
  if not known then
    known = { tokens = told.tokens, told = true, rows = {} }
    local lapsed = get_lapsed(permit)
    for _, row in ipairs(lapsed and lapsed.rows or {}) do
      spend(row.counter, -row.used)
    end
    call('DEL', base .. 'lapsed:' .. permit)
  end
  for _, row in ipairs(told.rows) do
    local mine = row_of(known, row.counter)
    if not mine then
      mine = { counter = row.counter, reserved = 0 }
      known.rows[#known.rows + 1] = mine
    end
    if row.reserved > mine.reserved then
      reserve(row.counter, row.reserved - mine.reserved)
      call('EXPIRE', base .. row.counter, row.keep)
      mine.reserved = row.reserved
    end
    mine.used = row.used
  end
  put_held(permit, known)
end

-- Renew the leases of one counter that are there, in as few commands as that takes.
local function renew_leases(list, lease_us, missing)
  local counter, ids, live = base .. list[1].counter, {}, {}
  for i, one in ipairs(list) do
    ids[i] = one.permit
  end
  for i, expiry in ipairs(call('ZMSCORE', counter, unpack(ids))) do
    if tonumber(expiry or 0) > now then
      live[#live + 1] = digits(now + lease_us)
      live[#live + 1] = ids[i]
    else
      missing[#missing + 1] = list[i]
    end
  end
  if #live > 0 then
    call('ZADD', counter, unpack(live))
    if list[1].counter ~= 'streams' then
      call('ZREMRANGEBYSCORE', counter, '-inf', digits(now))
    end
    call('EXPIRE', counter, HELD_S)
  end
end

-- Returns how many streams the tenant has, and the permits that are lost. Where a permit has no credit, its
-- tokens are -1.
function calls.renew()
  local lease_us, waiter_us, settle_us = number(), number(), number()
  local permits, missing, lost, dead = {}, {}, {}, {}
  purge()
  purge_queue()
  local count = number()
  if count > 0 then -- else there is nothing that Redis could have forgotten
    call('SET', base .. 'known', digits(now + settle_us), 'EX', KNOWN_S, 'NX')
    call('EXPIRE', base .. 'known', KNOWN_S)
  end
  local counters, names = {}, {}
  for i = 1, count do
    local permit, caps = word(), number()
    for _ = 1, caps do
      local counter, amount = word(), number()
      if not counters[counter] then
        counters[counter] = {}
        names[#names + 1] = counter
      end
      table.insert(counters[counter], { permit = permit, counter = counter, amount = amount })
    end
    permits[i] = { permit = permit, tokens = number(), rows = {} }
    for j = 1, number() do
      permits[i].rows[j] = { counter = word(), reserved = number(), used = number(), keep = number() }
    end
  end
  for _, counter in ipairs(names) do
    renew_leases(counters[counter], lease_us, missing)
  end
  for _, one in ipairs(missing) do
    if taken(one.counter) < one.amount then
      lease(one.counter, one.permit, lease_us)
    else
      lost[#lost + 1] = one.permit
      dead[one.permit] = dead[one.permit] or one.counter == 'streams'
    end
  end
  for _, told in ipairs(permits) do
    if told.tokens >= 0 then
      hold(told.permit, told)
      if dead[told.permit] then -- nobody would see it lapse
        lapse(told.permit)
      end
    end
  end
  for _ = 1, number() do
    local waiter = word()
    if call('ZSCORE', base .. 'waiting:until', waiter) then
      call('ZADD', base .. 'waiting:until', digits(now + waiter_us), waiter)
    end
  end
  table.insert(lost, 1, taken('streams'))
  return lost
end

function calls.release()
  local permit = word()
  local list = demands()
  leave_queue(permit)
  local held, lapsed
  for _, demand in ipairs(list) do
    if demand.each > 0 then
      held = get_held(permit)
      lapsed = not held and get_lapsed(permit)
      break
    end
  end
  for _, demand in ipairs(list) do
    local used = number()
    local row, before = row_of(held, demand.counter), row_of(lapsed, demand.counter)
    if demand.shape == 'c' then
      if call('ZREM', base .. demand.counter, permit) == 1 and demand.counter == 'streams' then
        note_free()
      end
    elseif demand.shape == 'r' then
      if held and not held.told and demand.each > 0 and not demand.shadow then
        adjust(demand, used - demand.base - demand.each * held.tokens)
      end
    elseif row then
      give_back(demand.counter, row.reserved)
      row.used = spend(demand.counter, used)
    elseif before then
      before.used = before.used + spend(demand.counter, used - before.used)
    end
  end
  if held then
    call('HDEL', base .. 'held', permit)
  end
  remember(permit, held or lapsed, ENDED_S) -- should the answer be lost, it is not charged twice
end

-- What is left of each limit, and then what shadows would have refused: names and numbers.
function calls.peek()
  local answer = reply(GRANTED, 0, MOST, 1, 0, demands())
  for _, field in ipairs(call('HGETALL', base .. 'shadow')) do
    answer[#answer + 1] = field
  end
  return answer
end

return calls[ARGV[1]]()
