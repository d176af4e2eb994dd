#!lua flags=allow-oom
-- Forgets fair-share times that say nothing any more: of lanes that are empty.
-- KEYS 1 fair (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 lane name  4… fields of that lane
-- Returns the number of fields removed
-- Derives `lane:` keys.
if redis.call('EXISTS', ARGV[1] .. 'lane:' .. ARGV[3]) == 1 then return 0 end
return redis.call('HDEL', KEYS[1], unpack(ARGV, 4))
