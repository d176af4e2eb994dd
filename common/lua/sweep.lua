#!lua flags=allow-oom
-- Forgets tenants' fair-share times that say nothing any more: those the class's virtual time has passed, and all of a
-- lane that is empty. The virtual time itself stays: a job that comes back with an old tag must not wait behind new ones.
-- KEYS 1 fair (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 lane name  4… tenants' fields of that lane
-- Returns the number of fields removed
-- Derives `lane:` keys.
local fair = KEYS[1]
local prefix, lane_name = ARGV[1], ARGV[3]
local empty = redis.call('EXISTS', prefix .. 'lane:' .. lane_name) == 0
local virtual = tonumber(redis.call('HGET', fair, 'v:' .. string.sub(lane_name, 1, 1)) or 0)
local removed = 0
for i = 4, #ARGV do
  if empty or tonumber(string.match(redis.call('HGET', fair, ARGV[i]) or '0', '^%S+')) <= virtual then
    removed = removed + redis.call('HDEL', fair, ARGV[i])
  end
end
return removed
