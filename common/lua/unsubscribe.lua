#!lua flags=allow-oom
-- Stops a job's frames to one gateway. A job left without readers is marked for cancelling after a grace, if it wants that.
-- KEYS 1 job (hash)  2 abandoned (zset)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 gateway  5 grace, ms
-- Returns the number of gateways still reading. Of several graces the one that ends first counts.
local job, abandoned = unpack(KEYS)
local offset_ms, id, gateway, grace_ms = tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local field = redis.call('HMGET', job, 'state', 'inbox', 'on_disconnect')
if not field[1] then return 0 end
local left = {}
for name in string.gmatch(field[2] or '', '[^,]+') do
  if name ~= gateway then left[#left + 1] = name end
end
redis.call('HSET', job, 'inbox', table.concat(left, ','))
local running = field[1] == 'queued' or field[1] == 'running' or field[1] == 'delayed'
if #left == 0 and field[3] == 'cancel' and running then
  local time = redis.call('TIME')
  redis.call('ZADD', abandoned, 'LT', time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms + grace_ms, id)
end
return #left
