#!lua flags=allow-oom
-- Takes one of a backend's API keys out of use for a while; a shorter time never ends a longer one.
-- KEYS 1 keys (hash digest -> '<until ms> <why>')
-- ARGV 1 backend's prefix  2 clock offset ms  3 the key's digest  4 for how long, ms  5 why, for people
-- Returns until when it is out of use, ms
local blocked = KEYS[1]
local offset_ms, digest, for_ms, why = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

local until_ms = now_ms + for_ms
local flat = redis.call('HGETALL', blocked)
for i = 1, #flat, 2 do
  local ends_ms = tonumber(string.match(flat[i + 1], '^%d+'))
  if ends_ms <= now_ms then
    redis.call('HDEL', blocked, flat[i])
  elseif flat[i] == digest and ends_ms >= until_ms then
    return ends_ms
  end
end
redis.call('HSET', blocked, digest, string.format('%.0f %s', until_ms, why))
if redis.call('PTTL', blocked) < for_ms then redis.call('PEXPIRE', blocked, for_ms) end
return until_ms
