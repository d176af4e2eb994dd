#!lua flags=allow-oom
-- Notes on a job's record that the ledger has another end of it, which is the one that counts.
-- KEYS 1 job (hash)
-- ARGV 1 pool prefix  2 clock offset ms
-- Returns 1, or 0 where there is no such job
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'deferred', 1)
return 1
