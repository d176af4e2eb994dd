#!lua flags=allow-oom
-- Asks for a job's end: tells the worker that runs it. A job that waits is left for the caller to settle. One that is
-- cancelled for want of readers leaves its idempotency key free: whoever lost the connection and asks again begins anew.
-- KEYS 1 job (hash)  2 abandoned (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 how long an order to a worker is kept, ms
--      5 '1': only for want of readers
-- Returns {code, fence}; code: 0 already ended, 1 waits (settle it with this fence), 2 its worker was told, 3 unknown,
--      4 it is read again, or its grace has not passed
-- Derives `control:` and `idem:` keys.
local job, abandoned = unpack(KEYS)
local prefix, id = ARGV[1], ARGV[3]
local unread = ARGV[5] == '1'
if unread then
  local due_ms = redis.call('ZSCORE', abandoned, id)
  local time = redis.call('TIME')
  if not due_ms or tonumber(due_ms) > time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2]) then
    return {4, '0'}
  end
end
local field = redis.call('HMGET', job, 'state', 'fence', 'worker')
-- One that waits stays listed until it is settled: this reply may be lost.
if not unread or (field[1] ~= 'queued' and field[1] ~= 'delayed') then redis.call('ZREM', abandoned, id) end
if not field[1] then return {3, '0'} end
-- An ended job has an answer, and one in the ledger is found there.
local keyed = unread and redis.call('HMGET', job, 'idem', 'journal', 'finished_ms')
if keyed and keyed[1] and not keyed[2] and not keyed[3] then
  redis.call('DEL', prefix .. 'idem:' .. keyed[1])
  redis.call('HDEL', job, 'idem')
end
if field[1] == 'queued' or field[1] == 'delayed' then return {1, field[2]} end
if field[1] ~= 'running' then return {0, field[2]} end
redis.call('HSET', job, 'cancel', 1)
local control = prefix .. 'control:' .. field[3]
redis.call('RPUSH', control, 'cancel ' .. id .. ' ' .. field[2])
redis.call('PEXPIRE', control, ARGV[4])
return {2, field[2]}
