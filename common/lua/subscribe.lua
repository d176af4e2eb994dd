#!lua flags=allow-oom
-- Has a job's frames sent to one more gateway from now on.
-- KEYS 1 job (hash)  2 abandoned (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 gateway
-- Returns the job's state, or '' when it is unknown
local job, abandoned = unpack(KEYS)
local id, gateway = ARGV[3], ARGV[4]
local field = redis.call('HMGET', job, 'state', 'inbox')
if not field[1] then return '' end
redis.call('ZREM', abandoned, id)
local inboxes = field[2] or ''
if not string.find(',' .. inboxes .. ',', ',' .. gateway .. ',', 1, true) then
  redis.call('HSET', job, 'inbox', inboxes == '' and gateway or (inboxes .. ',' .. gateway))
end
return field[1]
