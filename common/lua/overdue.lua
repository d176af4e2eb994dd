#!lua flags=allow-oom
-- Lists jobs that wait although their deadline has passed; the caller settles them as expired.
-- A running one is its worker's to end, so it is looked at again a little later; a record that is gone is forgotten.
-- KEYS 1 deadlines (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 most jobs to list  4 when to look at a running one again, ms
-- Returns a flat list of (job id, fence)
-- Derives `job:` keys.
local deadlines = KEYS[1]
local prefix, offset_ms, most, again_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local reply = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines, '-inf', now_ms, 'LIMIT', 0, most)) do
  local field = redis.call('HMGET', prefix .. 'job:' .. id, 'state', 'fence')
  if field[1] == 'queued' or field[1] == 'delayed' then
    reply[#reply + 1], reply[#reply + 2] = id, field[2]
  elseif field[1] == 'running' then
    redis.call('ZADD', deadlines, now_ms + again_ms, id)
  else
    redis.call('ZREM', deadlines, id)
  end
end
return reply
