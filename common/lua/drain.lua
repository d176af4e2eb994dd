#!lua flags=allow-oom
-- Tells a worker to take nothing new, end what it runs, and leave. It counts as draining at once. Safe to send again.
-- KEYS 1 workers (zset)  2 capacity (hash)  3 control (list)
-- ARGV 1 pool prefix  2 clock offset ms  3 worker id  4 how long an order to a worker is kept, ms
-- Returns 1 told, 0 there is no such worker (or it is being reaped)
local workers, capacity, control = unpack(KEYS)
local worker = ARGV[3]
if tonumber(redis.call('ZSCORE', workers, worker) or 0) == 0 then return 0 end
redis.call('HSET', capacity, worker, 0)
redis.call('RPUSH', control, 'drain - 0')
redis.call('PEXPIRE', control, ARGV[4])
return 1
