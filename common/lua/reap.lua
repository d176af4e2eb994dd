#!lua flags=allow-oom
-- Lists the jobs of workers whose lease lapsed, and shuts those workers out. The caller releases the jobs one by one;
-- a worker leaves the list when nothing of it is left, so a reaper that dies half-way is finished by the next round.
-- What it holds no more (the job's record is gone, or another's) is struck out here, since no release would.
-- KEYS 1 workers (zset)  2 capacity (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 most jobs to list
-- Returns a flat list of (worker id, job id, fence)
-- Derives `job:`, `held:`, `worker:`, `control:`, `bell:` keys.
local workers, capacity = unpack(KEYS)
local prefix, offset_ms, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local reply = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', now_ms)) do
  redis.call('ZADD', workers, 0, worker)
  local held = redis.call('HGETALL', prefix .. 'held:' .. worker)
  if #held == 0 then
    redis.call('ZREM', workers, worker)
    redis.call('HDEL', capacity, worker)
    redis.call('DEL', prefix .. 'worker:' .. worker, prefix .. 'control:' .. worker, prefix .. 'bell:' .. worker)
  end
  for i = 1, #held, 2 do
    if #reply >= most * 3 then return reply end
    local field = redis.call('HMGET', prefix .. 'job:' .. held[i], 'state', 'worker', 'fence')
    if field[1] == 'running' and field[2] == worker and field[3] == held[i + 1] then
      reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = worker, held[i], held[i + 1]
    else
      redis.call('HDEL', prefix .. 'held:' .. worker, held[i])
    end
  end
end
return reply
