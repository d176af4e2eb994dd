#!lua
-- Admits one job: writes its record and puts it in its lane, or among the delayed.
-- Refuses (writes nothing) when the id is taken or the lane is full. Runs out of memory cleanly: no allow-oom.
-- KEYS 1 job (hash)  2 lane (zset)  3 lanes (set)  4 fair (hash)  5 deadlines (zset)  6 delayed (zset)
--      7 bell (list)  8 stats (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 lane name  5 spec (JSON)  6 tenant  7 batch key (hex or '')
--      8 cost in tokens ÷ the tenant's weight  9 deadline in ms from now  10 delay ms  11 max attempts
--      12 on_disconnect  13 on_interrupt  14 gateway whose inbox gets the frames, or ''  15 most jobs in the lane
--      16 how long the record outlives the deadline, ms
-- Returns {code, created ms, jobs ahead in the lane}; code: 0 accepted, 1 duplicate, 2 full
local job, lane, lanes, fair, deadlines, delayed, bell, stats = unpack(KEYS)
local offset_ms, id, lane_name, spec, tenant = tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local batch_key, cost, deadline_in_ms, delay_ms = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local most, retention_ms = tonumber(ARGV[15]), tonumber(ARGV[16])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

if redis.call('EXISTS', job) == 1 then
  return {1, tonumber(redis.call('HGET', job, 'created_ms')), 0}
end
local depth = redis.call('ZCARD', lane)
if depth >= most or (delay_ms > 0 and redis.call('ZCARD', delayed) >= most) then
  return {2, now_ms, depth}
end

-- Start-time fair queuing: a tenant's next job starts where its last one ends, never before the lane's virtual time.
local tenant_field = 'f:' .. lane_name .. ':' .. tenant
local times = redis.call('HMGET', fair, 'v:' .. lane_name, tenant_field)
local tag = math.max(tonumber(times[1] or 0), tonumber(times[2] or 0))
redis.call('HSET', fair, tenant_field, string.format('%.0f', tag + cost))
local tag_text = string.format('%.0f', tag)

-- Among equal tags the smaller member goes first, so it begins with the time of entry.
local member = string.format('%010d%06d|%s|%s', math.floor(now_ms / 1000),
  (now_ms % 1000) * 1000 + time[2] % 1000, batch_key, id)
local deadline_ms = now_ms + deadline_in_ms
local state = delay_ms > 0 and 'delayed' or 'queued'
redis.call('HSET', job, 'state', state, 'spec', spec, 'tenant', tenant, 'lane', lane_name, 'member', member,
  'tag', tag_text, 'batch_key', batch_key, 'created_ms', now_ms, 'deadline_ms', deadline_ms, 'fence', 0,
  'attempt', 0, 'failures', 0, 'max_attempts', ARGV[11], 'on_disconnect', ARGV[12], 'on_interrupt', ARGV[13],
  'inbox', ARGV[14])
redis.call('PEXPIRE', job, deadline_in_ms + retention_ms)
redis.call('ZADD', deadlines, deadline_ms, id)
redis.call('HINCRBY', stats, 'submitted', 1)
if delay_ms > 0 then
  redis.call('ZADD', delayed, now_ms + delay_ms, id)
  return {0, now_ms, depth}
end
redis.call('ZADD', lane, tag_text, member)
if depth == 0 then redis.call('SADD', lanes, lane_name) end
if redis.call('LLEN', bell) < 256 then redis.call('LPUSH', bell, 1) end
return {0, now_ms, depth}
