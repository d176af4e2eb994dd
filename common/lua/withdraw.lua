#!lua flags=allow-oom
-- Takes back a submission that may still be on its way: leaves a record in its place, which `submit` finds taken.
-- KEYS 1 job (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 how long the place stays taken, ms
-- Returns 1 taken (now, or by an earlier call), 0 the job is there: cancel it instead
local job = KEYS[1]
if redis.call('EXISTS', job) == 1 then return redis.call('HEXISTS', job, 'spec') == 1 and 0 or 1 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
redis.call('HSET', job, 'state', 'cancelled', 'created_ms', now_ms, 'fence', 0)
redis.call('PEXPIRE', job, ARGV[3])
return 1
