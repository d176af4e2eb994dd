#!lua flags=allow-oom
-- Appends tokens to several jobs' streams and puts one frame in the inbox of each gateway that reads them.
-- Refuses what a worker sends for a job that is no longer its own, or has ended. Safe to send again: a position is written once.
-- KEYS 1 abandoned (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 worker id  4 most entries kept in an inbox  5 grace before a job without
--      readers is cancelled, ms  6… for each job: id, fence, last event's number, events (JSON, one a line)
-- Returns a list of (index of the job from 1, code) for those not written; code: 1 fenced, 2 stream lost
-- Derives `job:`, `stream:`, `inbox:` keys.
local abandoned = KEYS[1]
local prefix, offset_ms, worker, inbox_most = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local grace_ms = tonumber(ARGV[5])
local refused, frames = {}, {}

local function write(stream, position, events)
  local written = redis.pcall('XADD', stream, 'NOMKSTREAM', position, 'c', events)
  if type(written) == 'string' then return 0 end
  if not written then return 2 end
  -- The position is taken: ours, from a try whose reply was lost. A later attempt's entries would have another owner.
  return 0
end

local function remember(inboxes, id, position, events)
  for gateway in string.gmatch(inboxes, '[^,]+') do
    local frame = frames[gateway]
    if not frame then
      frame = {}
      frames[gateway] = frame
    end
    local last = #frame
    frame[last + 1], frame[last + 2], frame[last + 3], frame[last + 4] = id, position, 'c', events
  end
end

for i = 6, #ARGV, 4 do
  local id, fence, position, events = ARGV[i], ARGV[i + 1], ARGV[i + 1] .. '-' .. ARGV[i + 2], ARGV[i + 3]
  local field = redis.call('HMGET', prefix .. 'job:' .. id, 'worker', 'fence', 'inbox', 'state')
  local code = 1
  -- An ended job keeps its owner's name, and nothing may follow its outcome.
  if field[1] == worker and field[2] == fence and field[4] == 'running' then
    code = write(prefix .. 'stream:' .. id, position, events)
  end
  if code ~= 0 then
    refused[#refused + 1] = (i - 2) / 4
    refused[#refused + 1] = code
  elseif field[3] and field[3] ~= '' then
    remember(field[3], id, position, events)
  end
end

-- A gateway that died takes its readers along: its name leaves the jobs, and a job left without any may be cancelled.
local function forget(gateway, frame)
  local time = redis.call('TIME')
  local due_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms + grace_ms
  for i = 1, #frame, 4 do
    local job = prefix .. 'job:' .. frame[i]
    local field = redis.call('HMGET', job, 'inbox', 'on_disconnect')
    local left = {}
    for name in string.gmatch(field[1] or '', '[^,]+') do
      if name ~= gateway then left[#left + 1] = name end
    end
    redis.call('HSET', job, 'inbox', table.concat(left, ','))
    if #left == 0 and field[2] == 'cancel' then redis.call('ZADD', abandoned, due_ms, frame[i]) end
  end
end

for gateway, frame in pairs(frames) do
  local inbox = prefix .. 'inbox:' .. gateway
  for from = 1, #frame, 4000 do
    local sent = redis.call('XADD', inbox, 'NOMKSTREAM', 'MAXLEN', '~', inbox_most, '*',
      unpack(frame, from, math.min(from + 3999, #frame)))
    if not sent then
      forget(gateway, frame)
      break
    end
  end
end
return refused
