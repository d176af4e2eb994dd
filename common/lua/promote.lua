#!lua flags=allow-oom
-- Puts delayed jobs whose time has come into their lanes.
-- KEYS 1 delayed (zset)  2 lanes (set)  3 bell (list)  4 waiting (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 most jobs to move
-- Returns the number moved
-- Derives `job:` and `lane:` keys.
local delayed, lanes, bell, waiting = unpack(KEYS)
local prefix, offset_ms, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local moved = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now_ms, 'LIMIT', 0, most)) do
  redis.call('ZREM', delayed, id)
  local job = prefix .. 'job:' .. id
  local field = redis.call('HMGET', job, 'state', 'lane', 'tag', 'batch_key', 'cost')
  if field[1] == 'delayed' then
    local member = string.format('%013.0f000|%s|%s', now_ms, field[4], id)
    redis.call('HSET', job, 'state', 'queued', 'member', member)
    redis.call('ZADD', prefix .. 'lane:' .. field[2], field[3], member)
    redis.call('SADD', lanes, field[2])
    redis.call('HINCRBY', waiting, 't:' .. field[2], field[5] or 1)
    if redis.call('LLEN', bell) < 256 then redis.call('LPUSH', bell, 1) end
    moved = moved + 1
  end
end
return moved
