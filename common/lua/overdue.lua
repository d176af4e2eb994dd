#!lua flags=allow-oom
-- Lists jobs whose deadline has passed and that the caller is to settle as expired: those that wait, and those whose
-- worker lives but did not end them, neither by itself nor when it was told to. A record that is gone is forgotten.
-- KEYS 1 deadlines (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 most jobs to look at  4 how long after the deadline a worker is told, ms
--      5 how long after that its job is taken from it, ms  6 how long an order to a worker is kept, ms
-- Returns a flat list of (job id, fence, worker id or '' for a job that waits)
-- Derives `job:` and `control:` keys.
local deadlines = KEYS[1]
local prefix, offset_ms, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local told_after_ms, taken_after_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local reply = {}

local function list(id, fence, worker)
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = id, fence, worker
end

-- The score in `deadlines` becomes the time of the next look.
local function look_at_running(id, job, field)
  local fence, worker, told_ms = field[2], field[4], nil
  if field[5] then
    local told_fence, at_ms = string.match(field[5], '^(%d+) (%d+)$')
    if told_fence == fence then told_ms = tonumber(at_ms) end
  end
  if not told_ms and now_ms < tonumber(field[3]) + told_after_ms then
    redis.call('ZADD', deadlines, tonumber(field[3]) + told_after_ms, id)
  elseif not told_ms then
    local control = prefix .. 'control:' .. worker
    redis.call('RPUSH', control, 'expire ' .. id .. ' ' .. fence)
    redis.call('PEXPIRE', control, ARGV[6])
    redis.call('HSET', job, 'told', string.format('%s %.0f', fence, now_ms))
    redis.call('ZADD', deadlines, now_ms + taken_after_ms, id)
  else
    if now_ms >= told_ms + taken_after_ms then list(id, fence, worker) end
    redis.call('ZADD', deadlines, math.max(told_ms, now_ms) + taken_after_ms, id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines, '-inf', now_ms, 'LIMIT', 0, most)) do
  local job = prefix .. 'job:' .. id
  local field = redis.call('HMGET', job, 'state', 'fence', 'deadline_ms', 'worker', 'told')
  if field[1] == 'queued' or field[1] == 'delayed' then
    list(id, field[2], '')
  elseif field[1] == 'running' then
    look_at_running(id, job, field)
  else
    redis.call('ZREM', deadlines, id)
  end
end
return reply
