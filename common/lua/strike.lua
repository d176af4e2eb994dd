#!lua flags=allow-oom
-- Strikes off the stream what the ledger has, so that no reader gets it again.
-- KEYS 1 ended (stream)
-- ARGV 1 pool prefix  2 clock offset ms  3 group  4… entry ids
-- Returns the number struck off
local ended = KEYS[1]
local ids = {unpack(ARGV, 4)}
redis.call('XACK', ended, ARGV[3], unpack(ids))
return redis.call('XDEL', ended, unpack(ids))
