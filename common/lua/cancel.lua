#!lua flags=allow-oom
-- Asks for a job's end: tells the worker that runs it. A job that waits is left for the caller to settle.
-- KEYS 1 job (hash)  2 abandoned (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 how long an order to a worker is kept, ms
-- Returns {code, fence}; code: 0 already ended, 1 waits (settle it with this fence), 2 its worker was told, 3 unknown
-- Derives `control:` keys.
local job, abandoned = unpack(KEYS)
local prefix, id = ARGV[1], ARGV[3]
redis.call('ZREM', abandoned, id)
local field = redis.call('HMGET', job, 'state', 'fence', 'worker')
if not field[1] then return {3, '0'} end
if field[1] == 'queued' or field[1] == 'delayed' then return {1, field[2]} end
if field[1] ~= 'running' then return {0, field[2]} end
redis.call('HSET', job, 'cancel', 1)
local control = prefix .. 'control:' .. field[3]
redis.call('RPUSH', control, 'cancel ' .. id .. ' ' .. field[2])
redis.call('PEXPIRE', control, ARGV[4])
return {2, field[2]}
