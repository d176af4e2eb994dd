#!lua flags=allow-oom
-- Gives a worker up to n jobs: from the highest class that waits, and in a class by fair tag over all its lanes. A lower
-- class whose head has waited past the class's slack earns a share of what the higher ones are given, counted in the time
-- for which jobs hold a slot, so that none starves; a deep old backlog gets no more than that share, so that batch work
-- never holds up chat.
-- Jobs whose batch key this worker served last go first within a window, and the first one's key is taken along; a head
-- is passed over a bounded number of times, a young job is left for a moment to a free worker that is warm for it.
-- While interactive work came lately a worker's last free slots are kept for it: lower classes get none of them, but for
-- an aged one whose turn it is when interactive work waits. What is held back rings for workers that keep nothing.
-- Marks owner and fence and opens the stream entry.
-- KEYS 1 lanes (set)  2 fair (hash)  3 workers (zset)  4 bell (list)  5 held (hash)  6 waiting (hash)  7 warm (hash)
--      8 capacity (hash)  9 urgent bell (list)
-- ARGV 1 pool prefix  2 clock offset ms  3 worker id  4 most jobs to take (n)  5 batch window, members
--      6 slack of class 1 ms  7 slack of class 2 ms  8 share of the slots' time that an aged class earns, 0 to 1
--      9 how long a stream outlives its job's deadline, ms  10 how long a job is left to its warm worker, ms
--      11 most claims in a row that pass over a head  12 least age of a job to be taken, ms  13 how long a key stays warm, ms
--      14 how many slots are kept free for interactive work  15 for how long after the last such job, ms
--      16 number of caps, each a most number of jobs to take from the lanes that name it
--      17… the caps, then for each lane this worker can serve now: name, number of its cap or 0
-- Returns {-1} when the worker has no lease, else {now ms, 1 where the slots that are left are kept or else 0, then for
--      each job: id, fence, attempt, failures, created ms, deadline ms, spec}
-- Derives `job:`, `stream:`, `lane:`, `held:`, `delayed` keys.
local lanes, fair, workers, bell, held, waiting, warm, capacity, urgent_bell = unpack(KEYS)
local prefix, offset_ms, worker, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], math.min(tonumber(ARGV[4]), 1000)
local most_dropped, most_warm, most_credit_ms, unknown_ms_per_token = 1000, 4096, 3600000, 10
local window, share, retention_ms = tonumber(ARGV[5]), tonumber(ARGV[8]), tonumber(ARGV[9])
local slack_ms = {[0] = 0, tonumber(ARGV[6]), tonumber(ARGV[7])}
local hold_ms, most_passes, least_age_ms, warm_ms = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13]
local keep, lately_ms = tonumber(ARGV[14]), tonumber(ARGV[15])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local lease_ms = tonumber(redis.call('ZSCORE', workers, worker) or 0)
if lease_ms == 0 then return {-1} end

local caps, served = {[0] = n}, {}
local last_cap = 16 + tonumber(ARGV[16])
for i = 17, last_cap do caps[i - 16] = tonumber(ARGV[i]) end
for i = last_cap + 1, #ARGV, 2 do served[ARGV[i]] = tonumber(ARGV[i + 1]) end

-- A lane here: its name, class, cap, and the head of its zset as a flat list of member, tag, member, tag, …
local open, urgent_lanes = {}, 0
for _, name in ipairs(redis.call('SMEMBERS', lanes)) do
  if string.sub(name, 1, 1) == '0' then urgent_lanes = urgent_lanes + 1 end
  if served[name] and caps[served[name]] > 0 then
    local head = redis.call('ZRANGE', prefix .. 'lane:' .. name, 0, n - 1, 'WITHSCORES')
    if #head > 0 then
      local class = tonumber(string.sub(name, 1, 1))
      open[#open + 1] = {name = name, class = class, cap = served[name], head = head, at = 1, taken = {}, gone = {},
        tokens = 0, dropped_tokens = 0, slot_ms = 0, passes = 0}
    end
  end
end

-- Jobs whose key begins with '+' share one call, and so what serves them: those taken along count against no cap.
local function joint(key) return string.sub(key, 1, 1) == '+' end
local function key_of(member) return string.match(member, '^%d+|([^|]*)|') end
local function age_ms(member) return now_ms - tonumber(string.sub(member, 1, 13)) end
local function old_enough(member) return least_age_ms == 0 or age_ms(member) >= least_age_ms end

-- Whether something of the lane is left for us; reads on where all that was read is taken or left to others.
local function waits(lane)
  if lane.closed or caps[lane.cap] <= 0 then return false end
  while lane.gone[lane.head[lane.at]] do
    lane.at = lane.at + 2
    if lane.at > #lane.head then
      local from = #lane.head / 2
      for _, item in ipairs(redis.call('ZRANGE', prefix .. 'lane:' .. lane.name, from, from + n - 1, 'WITHSCORES')) do
        lane.head[#lane.head + 1] = item
      end
    end
  end
  return lane.at <= #lane.head and old_enough(lane.head[lane.at])
end

local function before(lane, other)
  local tag, other_tag = tonumber(lane.head[lane.at + 1]), tonumber(other.head[other.at + 1])
  return tag < other_tag or (tag == other_tag and lane.head[lane.at] < other.head[other.at])
end

-- The lane of each class whose head goes first.
local function first_of_classes()
  local first = {}
  for _, lane in ipairs(open) do
    if waits(lane) and (not first[lane.class] or before(lane, first[lane.class])) then first[lane.class] = lane end
  end
  return first
end

local credits, aging, credits_changed = {0, 0}, {}, false
local virtual_times, urgent_ms, urgent_given = {}, 0, false
if #open > 0 or n <= keep then
  local known = redis.call('HMGET', fair, 'c:1', 'c:2', 'g:1', 'g:2', 'v:0', 'v:1', 'v:2', 'u')
  credits = {tonumber(known[1] or 0), tonumber(known[2] or 0)}
  aging = {known[3], known[4]}
  virtual_times = {[0] = tonumber(known[5] or -1), tonumber(known[6] or -1), tonumber(known[7] or -1)}
  urgent_ms = tonumber(known[8] or 0)
end

-- Whether some of this worker's slots are for interactive work alone. A time far ahead is of a clock that went back.
local lately = math.abs(now_ms - urgent_ms) < lately_ms
local function keeping() return keep > 0 and (lately or urgent_given) end

-- How long a job is likely to hold a slot, by its cost, as the lane's last ones did.
local function likely_ms(lane, cost)
  if not lane.ms_per_token then
    local mean_ms, mean_cost = string.match(redis.call('HGET', fair, 'm:' .. lane.name) or '', '^(%S+) (%S+)')
    lane.ms_per_token = mean_ms and mean_ms / mean_cost or unknown_ms_per_token
  end
  return math.max(1, cost * lane.ms_per_token)
end

-- Whether a class has waited past its slack. It has from then on until it is served for want of higher work: behind a
-- head that came only now older jobs may wait.
local function aged_out(class, lane)
  if not aging[class] and age_ms(lane.head[lane.at]) >= slack_ms[class] then
    aging[class] = '1'
    redis.call('HSET', fair, 'g:' .. class, 1)
  end
  return aging[class]
end

local count, dropped, held_back = 0, 0, false
local function kept() return keeping() and n - count <= keep end

-- The lane to take from, whether it is on an aged class's share, and the classes that earn by what is taken. A class
-- has earned its turn when it could pay for the job that it keeps waiting; what its own costs more it owes.
local function choose()
  local first = first_of_classes()
  local best = first[0] or first[1] or first[2]
  if not best then return nil end
  if best.class > 0 and kept() then
    held_back = true
    return nil
  end
  local aged = {}
  for class = best.class + 1, 2 do
    local lane = first[class]
    if lane and aged_out(class, lane) then aged[#aged + 1] = class end
  end
  if #aged == 0 then return best, false, aged end
  local cost = redis.call('HGET', prefix .. 'job:' .. string.match(best.head[best.at], '([^|]*)$'), 'cost')
  local price = math.min(most_credit_ms, likely_ms(best, tonumber(cost or 1)))
  for i, class in ipairs(aged) do
    if credits[class] >= price then
      table.remove(aged, i)
      return first[class], true, aged
    end
  end
  return best, false, aged
end

local reply = {now_ms, 0}
local left_by = {}

-- What the job's true time in its slot will change in the classes' credits: class and factor, for each.
local function accounts(class, on_share, earning)
  local text = on_share and (' ' .. class .. ':-1') or ''
  for _, other in ipairs(earning) do text = text .. ' ' .. other .. ':' .. share end
  return text
end

local function take(lane, member, tag, account, along)
  lane.taken[#lane.taken + 1] = member
  lane.gone[member] = true
  lane.tag = math.max(lane.tag or 0, tonumber(tag))
  local id = string.match(member, '([^|]*)$')
  local job = prefix .. 'job:' .. id
  local field = redis.call('HMGET', job, 'state', 'deadline_ms', 'fence', 'attempt', 'failures', 'created_ms', 'spec',
    'cost', 'tenant')
  local deadline_ms = tonumber(field[2] or 0)
  -- What is past its deadline is never dispatched; its end is the scheduler's, from the deadlines.
  if field[1] ~= 'queued' or deadline_ms <= now_ms then
    dropped = dropped + 1
    lane.dropped_tokens = lane.dropped_tokens + tonumber(field[8] or 0)
    return
  end
  local credit = ''
  if account ~= '' or (keeping() and lane.class > 0 and credits[lane.class] > 0) then
    local slot_ms = likely_ms(lane, tonumber(field[8] or 1))
    lane.slot_ms = lane.slot_ms + slot_ms
    if account ~= '' then credit = string.format('%.3f', slot_ms) .. account end
  end
  local fence = math.max(now_ms, tonumber(field[3]) + 1)
  local fence_text, attempt = string.format('%.0f', fence), tonumber(field[4] or 0) + 1
  redis.call('HSET', job, 'state', 'running', 'worker', worker, 'fence', fence_text, 'attempt', attempt,
    'started_ms', now_ms)
  -- An earlier attempt's account is settled.
  if credit ~= '' or attempt > 1 then redis.call('HSET', job, 'credit', credit) end
  redis.call('HSET', held, id, fence_text)
  local stream = prefix .. 'stream:' .. id
  redis.call('XADD', stream, fence_text .. '-0', 's', attempt)
  redis.call('PEXPIRE', stream, deadline_ms - now_ms + retention_ms)
  local key = key_of(member)
  if key ~= '' then
    -- Bounded by forgetting any: which keys are in use, the next claims tell again.
    if redis.call('HSET', warm, key, worker) == 1 and redis.call('HLEN', warm) > most_warm then
      redis.call('HDEL', warm, redis.call('HRANDFIELD', warm))
    end
    redis.call('PEXPIRE', warm, warm_ms)
  end
  count = count + 1
  if lane.class == 0 then urgent_given = true end
  if not along then caps[lane.cap] = caps[lane.cap] - 1 end
  lane.tokens = lane.tokens + tonumber(field[8] or 1)
  left_by[field[9]] = (left_by[field[9]] or 0) + 1
  local last = #reply
  reply[last + 1], reply[last + 2], reply[last + 3], reply[last + 4] = id, fence_text, attempt, tonumber(field[5] or 0)
  reply[last + 5], reply[last + 6], reply[last + 7] = field[6], field[2], field[7]
end

local function take_same_key(lane, key, account)
  local near = redis.call('ZRANGE', prefix .. 'lane:' .. lane.name, 0, window - 1, 'WITHSCORES')
  for i = 1, #near, 2 do
    if count >= n or (caps[lane.cap] <= 0 and not joint(key)) or (lane.class > 0 and kept()) then return end
    if not lane.gone[near[i]] and key_of(near[i]) == key then
      take(lane, near[i], near[i + 1], account, joint(key))
    end
  end
end

-- Whether a job's key is another's to serve: one that lives, has a slot, and is given a moment to come.
local function left_to(owner, member)
  local age = age_ms(member)
  -- It is older than the clock where that went back.
  return owner and owner ~= worker and age >= 0 and age < hold_ms
    and tonumber(redis.call('ZSCORE', workers, owner) or 0) > now_ms
    and redis.call('HLEN', prefix .. 'held:' .. owner) < tonumber(redis.call('HGET', capacity, owner) or 0)
end

-- The member to take from a lane whose head has a batch key: the first within the window that is warm here, else the
-- first that is nobody else's for the moment; nil where there is none.
local function pick(lane)
  local near = redis.call('ZRANGE', prefix .. 'lane:' .. lane.name, 0, window - 1, 'WITHSCORES')
  local asked, members = {}, {}
  for i = 1, #near, 2 do
    if not lane.gone[near[i]] and old_enough(near[i]) then
      members[#members + 1] = i
      asked[#asked + 1] = key_of(near[i])
    end
  end
  if #members == 0 then return lane.head[lane.at], lane.head[lane.at + 1] end
  local owners = redis.call('HMGET', warm, unpack(asked))
  local passes = tonumber(redis.call('HGET', fair, 'p:' .. lane.name) or 0)
  lane.passes = passes
  local free
  for k, i in ipairs(members) do
    if owners[k] == worker and (k == 1 or passes < most_passes) then
      if k > 1 then lane.passes = redis.call('HINCRBY', fair, 'p:' .. lane.name, 1) elseif passes > 0 then
        redis.call('HDEL', fair, 'p:' .. lane.name)
      end
      return near[i], near[i + 1]
    end
    if not free and not left_to(owners[k], near[i]) then free = k end
  end
  if not free then return nil end
  if free == 1 and passes > 0 then redis.call('HDEL', fair, 'p:' .. lane.name) end
  return near[members[free]], near[members[free] + 1]
end

local served_at_last = {}
while count < n and dropped < most_dropped do
  local lane, on_share, earning = choose()
  if not lane then break end
  local member, tag = lane.head[lane.at], lane.head[lane.at + 1]
  local key = key_of(member)
  if key ~= '' then
    member, tag = pick(lane)
    key = member and key_of(member)
  end
  if not member then
    lane.closed = true
  else
    local account, slot_ms = accounts(lane.class, on_share, earning), lane.slot_ms
    take(lane, member, tag, account)
    if not on_share and key ~= '' and count < n then take_same_key(lane, key, account) end
    slot_ms = lane.slot_ms - slot_ms
    if on_share then
      credits[lane.class] = credits[lane.class] - slot_ms
      credits_changed = true
    else
      served_at_last[lane.class] = true
      -- While slots are kept, what a class is given besides counts as its turns: it has no need of those of the kept.
      if slot_ms > 0 and keeping() and lane.class > 0 and credits[lane.class] > 0 then
        credits[lane.class] = math.max(0, credits[lane.class] - slot_ms)
        credits_changed = true
      end
    end
    for _, class in ipairs(earning) do
      credits[class] = credits[class] + share * slot_ms
      credits_changed = true
    end
  end
end

local virtual = {}
for _, lane in ipairs(open) do
  if #lane.taken > 0 then
    local key = prefix .. 'lane:' .. lane.name
    for from = 1, #lane.taken, 1000 do
      redis.call('ZREM', key, unpack(lane.taken, from, math.min(from + 999, #lane.taken)))
    end
    virtual[lane.class] = math.max(virtual[lane.class] or 0, lane.tag)
    lane.emptied = redis.call('EXISTS', key) == 0
    if lane.emptied then
      redis.call('SREM', lanes, lane.name)
      if lane.class == 0 then urgent_lanes = urgent_lanes - 1 end
      if lane.passes > 0 then redis.call('HDEL', fair, 'p:' .. lane.name) end
    end
  end
end
-- Virtual time never goes back: a job that was put back has an old tag.
local noted = {}
local function note(field, value) noted[#noted + 1], noted[#noted + 2] = field, value end
for class, tag in pairs(virtual) do
  if tag > virtual_times[class] then note('v:' .. class, string.format('%.3f', tag)) end
  if aging[class] and served_at_last[class] then redis.call('HDEL', fair, 'g:' .. class) end
end
if credits_changed then
  for class, credit in ipairs(credits) do
    note('c:' .. class, math.max(-most_credit_ms, math.min(most_credit_ms, credit)))
  end
end
if urgent_given and math.abs(now_ms - urgent_ms) >= 1000 then note('u', now_ms) end
if #noted > 0 then redis.call('HSET', fair, unpack(noted)) end
local idle = redis.call('SCARD', lanes) == 0
if idle and redis.call('EXISTS', prefix .. 'delayed') == 0 then
  -- What was counted wrong is forgotten with the rest.
  redis.call('DEL', waiting)
else
  for _, lane in ipairs(open) do
    if lane.emptied then
      redis.call('HDEL', waiting, 't:' .. lane.name)
    elseif lane.tokens + lane.dropped_tokens > 0 then
      redis.call('HINCRBY', waiting, 't:' .. lane.name, -lane.tokens - lane.dropped_tokens)
    end
  end
  for tenant, jobs in pairs(left_by) do
    if redis.call('HINCRBY', waiting, 'j:' .. tenant, -jobs) <= 0 then redis.call('HDEL', waiting, 'j:' .. tenant) end
  end
end

-- Free workers of the pool are to come for what is held back, also where this one was to serve its batch key.
local function ring_on()
  for _, lane in ipairs(open) do
    local key = lane.class > 0 and waits(lane) and key_of(lane.head[lane.at]) or ''
    if key ~= '' and redis.call('HGET', warm, key) == worker then redis.call('HDEL', warm, key) end
  end
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, 1) end
end

-- Bells that still hang though nothing waits would only wake workers for nothing.
if idle then
  redis.call('DEL', bell, urgent_bell)
else
  if urgent_given and urgent_lanes == 0 then redis.call('DEL', urgent_bell) end
  if dropped >= most_dropped then
    redis.call('LPUSH', bell, 1)
    redis.call('LPUSH', urgent_bell, 1)
  end
  if held_back then ring_on() end
end
if kept() then reply[2] = 1 end
return reply
