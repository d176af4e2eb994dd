#!lua flags=allow-oom
-- Makes a gateway's inbox or renews its life; also when memory is full, since running work is read through it.
-- KEYS 1 inbox (stream)
-- ARGV 1 pool prefix  2 clock offset ms  3 life, ms
-- Returns 1 renewed, 0 made anew (what was in flight is lost; the job streams have it)
local inbox = KEYS[1]
local there = redis.call('EXISTS', inbox)
if there == 0 then redis.call('XADD', inbox, '*', 'hello', '') end
redis.call('PEXPIRE', inbox, ARGV[3])
return there
