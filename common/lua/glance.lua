#!lua flags=allow-oom
-- Tells how several jobs stand, for a gateway whose readers have heard nothing for a while.
-- KEYS none; every key is derived from the pool's prefix
-- ARGV 1 pool prefix  2 clock offset ms  3… job ids
-- Returns for each job: its state ('' when unknown), its stream's last id ('' when there is no stream)
-- Derives `job:` and `stream:` keys.
local prefix = ARGV[1]
local reply = {}
for i = 3, #ARGV do
  local top = redis.call('XREVRANGE', prefix .. 'stream:' .. ARGV[i], '+', '-', 'COUNT', 1)
  reply[#reply + 1] = redis.call('HGET', prefix .. 'job:' .. ARGV[i], 'state') or ''
  reply[#reply + 1] = #top > 0 and top[1][1] or ''
end
return reply
