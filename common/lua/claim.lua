#!lua flags=allow-oom
-- Gives a worker up to n jobs: from the highest class that waits, the earliest entry first among its lanes, and inside
-- a lane by fair tag. A lower class whose head has waited past the class's slack earns a share of the claims, so that
-- none starves; a deep old backlog gets no more than that share, so that batch work never holds up chat.
-- Takes jobs with the first one's batch key along, within a window, but not on that share. Marks owner and fence and opens the stream entry.
-- KEYS 1 lanes (set)  2 fair (hash)  3 workers (zset)  4 bell (list)  5 held (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 worker id  4 most jobs to take (n)  5 batch window, members
--      6 slack of class 1 ms  7 slack of class 2 ms  8 share of claims that an aged class earns, 0 to 1
--      9 how long a stream outlives its job's deadline, ms  10… names of the lanes this worker can serve now
-- Returns {-1} when the worker has no lease, else {now ms, then for each job: id, fence, attempt, failures,
--      created ms, deadline ms, spec}
-- Derives `job:`, `stream:`, `lane:` keys.
local lanes, fair, workers, bell, held = unpack(KEYS)
local prefix, offset_ms, worker, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], math.min(tonumber(ARGV[4]), 1000)
local most_dropped = 1000
local window, share, retention_ms = tonumber(ARGV[5]), tonumber(ARGV[8]), tonumber(ARGV[9])
local slack_ms = {[0] = 0, tonumber(ARGV[6]), tonumber(ARGV[7])}

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local lease_ms = tonumber(redis.call('ZSCORE', workers, worker) or 0)
if lease_ms == 0 then return {-1} end

local served = {}
for i = 10, #ARGV do served[ARGV[i]] = true end

-- A lane here: its name, class, and the head of its zset as a flat list of member, tag, member, tag, …
local open, classes = {}, {}
for _, name in ipairs(redis.call('SMEMBERS', lanes)) do
  if served[name] then
    local head = redis.call('ZRANGE', prefix .. 'lane:' .. name, 0, n - 1, 'WITHSCORES')
    if #head > 0 then
      local class = tonumber(string.sub(name, 1, 1))
      open[#open + 1] = {name = name, class = class, head = head, at = 1, taken = {}, gone = {}}
      classes[class] = true
    end
  end
end

-- Whether something of the lane is left; reads on where all that was read is taken.
local function waiting(lane)
  while lane.gone[lane.head[lane.at]] do
    lane.at = lane.at + 2
    if lane.at > #lane.head then
      local from = #lane.head / 2
      for _, item in ipairs(redis.call('ZRANGE', prefix .. 'lane:' .. lane.name, from, from + n - 1, 'WITHSCORES')) do
        lane.head[#lane.head + 1] = item
      end
    end
  end
  return lane.at <= #lane.head
end

-- The lane of each class whose head came first.
local function first_of_classes()
  local first = {}
  for _, lane in ipairs(open) do
    if waiting(lane) then
      local best = first[lane.class]
      if not best or lane.head[lane.at] < best.head[best.at] then first[lane.class] = lane end
    end
  end
  return first
end

local credits, credits_changed = {}, false
if (classes[0] and (classes[1] or classes[2])) or (classes[1] and classes[2]) then
  local kept = redis.call('HMGET', fair, 'c:1', 'c:2')
  credits = {tonumber(kept[1] or 0), tonumber(kept[2] or 0)}
end

-- The lane to take from, and whether it is on an aged class's share.
local function choose()
  local first = first_of_classes()
  local best = first[0] or first[1] or first[2]
  if not best then return nil end
  for class = best.class + 1, 2 do
    local lane = first[class]
    if lane and now_ms - tonumber(string.sub(lane.head[lane.at], 1, 13)) >= slack_ms[class] then
      credits[class] = credits[class] + share
      credits_changed = true
      if credits[class] >= 1 then
        credits[class] = credits[class] - 1
        return lane, true
      end
    end
  end
  return best, false
end

local reply = {now_ms}
local count, dropped = 0, 0

local function take(lane, member, tag)
  lane.taken[#lane.taken + 1] = member
  lane.gone[member] = true
  lane.tag = math.max(lane.tag or 0, tonumber(tag))
  local id = string.match(member, '([^|]*)$')
  local job = prefix .. 'job:' .. id
  local field = redis.call('HMGET', job, 'state', 'deadline_ms', 'fence', 'attempt', 'failures', 'created_ms', 'spec')
  local deadline_ms = tonumber(field[2] or 0)
  -- What is past its deadline is never dispatched; its end is the scheduler's, from the deadlines.
  if field[1] ~= 'queued' or deadline_ms <= now_ms then
    dropped = dropped + 1
    return
  end
  local fence = math.max(now_ms, tonumber(field[3]) + 1)
  local fence_text, attempt = string.format('%.0f', fence), tonumber(field[4]) + 1
  redis.call('HSET', job, 'state', 'running', 'worker', worker, 'fence', fence_text, 'attempt', attempt,
    'started_ms', now_ms)
  redis.call('HSET', held, id, fence_text)
  local stream = prefix .. 'stream:' .. id
  redis.call('XADD', stream, fence_text .. '-0', 's', attempt)
  redis.call('PEXPIRE', stream, deadline_ms - now_ms + retention_ms)
  count = count + 1
  local last = #reply
  reply[last + 1], reply[last + 2], reply[last + 3], reply[last + 4] = id, fence_text, attempt, tonumber(field[5])
  reply[last + 5], reply[last + 6], reply[last + 7] = field[6], field[2], field[7]
end

local function take_same_key(lane, member)
  local key = string.match(member, '^%d+|([^|]*)|')
  if key == '' then return end
  local near = redis.call('ZRANGE', prefix .. 'lane:' .. lane.name, 0, window - 1, 'WITHSCORES')
  for i = 1, #near, 2 do
    if count >= n then return end
    if not lane.gone[near[i]] and string.match(near[i], '^%d+|([^|]*)|') == key then take(lane, near[i], near[i + 1]) end
  end
end

while count < n and dropped < most_dropped do
  local lane, on_share = choose()
  if not lane then break end
  local member, tag = lane.head[lane.at], lane.head[lane.at + 1]
  take(lane, member, tag)
  if count < n and not on_share then take_same_key(lane, member) end
end

for _, lane in ipairs(open) do
  if #lane.taken > 0 then
    local key = prefix .. 'lane:' .. lane.name
    redis.call('ZREM', key, unpack(lane.taken))
    -- It never goes back: a job that was put back has an old tag.
    if lane.tag > tonumber(redis.call('HGET', fair, 'v:' .. lane.name) or -1) then
      redis.call('HSET', fair, 'v:' .. lane.name, string.format('%.0f', lane.tag))
    end
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', lanes, lane.name) end
  end
end
if credits_changed then
  redis.call('HSET', fair, 'c:1', credits[1], 'c:2', credits[2])
end
-- Nothing waits: the bells still hanging would only wake workers for nothing.
if redis.call('SCARD', lanes) == 0 then
  redis.call('DEL', bell)
elseif dropped >= most_dropped then
  redis.call('LPUSH', bell, 1)
end
return reply
