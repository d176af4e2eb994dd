#!lua flags=allow-oom
-- Registers a worker or renews its lease, whatever the number of its jobs, and shows what it does.
-- A worker that was reaped is refused; one whose lease lapsed but whom nobody reaped goes on.
-- KEYS 1 workers (zset)  2 worker info (string)  3 capacity (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 worker id  4 lease ms  5 info (JSON)  6 '1': register
--      7 jobs it can hold at once; 0: it takes none
-- Returns the lease's end in ms, or 0 when refused
local workers, info, capacity = unpack(KEYS)
local offset_ms, worker, lease_ms = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
if ARGV[6] ~= '1' and tonumber(redis.call('ZSCORE', workers, worker) or 0) == 0 then return 0 end
redis.call('ZADD', workers, now_ms + lease_ms, worker)
-- One that was told to drain takes nothing more, whatever it says before it has heard of it.
if ARGV[6] == '1' or redis.call('HGET', capacity, worker) ~= '0' then redis.call('HSET', capacity, worker, ARGV[7]) end
redis.call('SET', info, ARGV[5], 'PX', lease_ms * 3)
return now_ms + lease_ms
