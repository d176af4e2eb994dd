#!lua flags=allow-oom
-- Takes a worker that holds no job off the list; one that still holds some keeps its lease and is left to the reaper.
-- KEYS 1 workers (zset)  2 worker info (string)  3 held (hash)  4 control (list)  5 capacity (hash)
--      6 its own bell (list)
-- ARGV 1 pool prefix  2 clock offset ms  3 worker id
-- Returns 1 gone, 0 still holds jobs
local workers, info, held, control, capacity, own_bell = unpack(KEYS)
if redis.call('EXISTS', held) == 1 then return 0 end
redis.call('ZREM', workers, ARGV[3])
redis.call('HDEL', capacity, ARGV[3])
redis.call('DEL', info, control, own_bell)
return 1
