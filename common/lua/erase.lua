#!lua flags=allow-oom
-- Takes an ended job out of the store: its record, its stream, and its place in the lists that name it.
-- KEYS 1 job (hash)  2 stream (stream)  3 dead (zset)  4 the tenant's jobs (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id
-- Returns 1, or 0 where the job has not ended
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'delayed' or state == 'queued' or state == 'running' then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[3])
redis.call('ZREM', KEYS[4], ARGV[3])
return 1
