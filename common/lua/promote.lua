#!lua flags=allow-oom
-- Puts delayed jobs whose time has come into their lanes: one that is tried again at its old tag, one that may begin
-- only now at the tag that it would get if it were submitted now.
-- KEYS 1 delayed (zset)  2 lanes (set)  3 bell (list)  4 waiting (hash)  5 fair (hash)  6 urgent bell (list)
-- ARGV 1 pool prefix  2 clock offset ms  3 most jobs to move
-- Returns the number moved
-- Derives `job:` and `lane:` keys.
local delayed, lanes, _, waiting, fair = unpack(KEYS)
local prefix, offset_ms, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

-- As `submit` does it; what waits of the tenant includes this job.
local function new_tag(lane_name, tenant, cost, weight)
  local times = redis.call('HMGET', fair, 'v:' .. string.sub(lane_name, 1, 1), 'f:' .. lane_name .. ':' .. tenant)
  local ends, last = string.match(times[2] or '0', '^(%S+) ?(%S*)$')
  local starts = math.max(tonumber(times[1] or 0), tonumber(ends))
  local tag = starts
  if tonumber(redis.call('HGET', waiting, 'j:' .. tenant) or 0) > 1 then tag = math.max(starts, tonumber(last) or 0) end
  local tag_text = string.format('%.3f', tag)
  redis.call('HSET', fair, 'f:' .. lane_name .. ':' .. tenant, string.format('%.3f %s', starts + cost / weight, tag_text))
  return tag_text
end

local moved = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now_ms, 'LIMIT', 0, most)) do
  redis.call('ZREM', delayed, id)
  local job = prefix .. 'job:' .. id
  local field = redis.call('HMGET', job, 'state', 'lane', 'tag', 'member', 'cost', 'tenant', 'weight')
  if field[1] == 'delayed' then
    local member = string.format('%013.0f000%s', now_ms, string.match(field[4], '|.*$'))
    local tag = field[3]
    if tag == '' then tag = new_tag(field[2], field[6], tonumber(field[5]), tonumber(field[7] or 1)) end
    redis.call('HSET', job, 'state', 'queued', 'member', member, 'tag', tag)
    redis.call('ZADD', prefix .. 'lane:' .. field[2], tag, member)
    redis.call('SADD', lanes, field[2])
    redis.call('HINCRBY', waiting, 't:' .. field[2], field[5] or 1)
    local its_bell = KEYS[string.sub(field[2], 1, 1) == '0' and 6 or 3]
    if redis.call('LLEN', its_bell) < 256 then redis.call('LPUSH', its_bell, 1) end
    moved = moved + 1
  end
end
return moved
