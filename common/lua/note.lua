#!lua flags=allow-oom
-- Notes what one probe of a backend found, beside the failures in a row before it. One success makes it healthy.
-- KEYS 1 health (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 backend  4 '1': the probe succeeded  5 how long it took, ms
--      6 detail for people or ''  7 requests it runs or ''  8 requests it keeps waiting or ''
--      9 failures in a row that make it unhealthy  10 how long this stands without another probe, ms
-- Returns {healthy 0 or 1, healthy before 0 or 1 (1 where nothing was known)}
local health = KEYS[1]
local offset_ms, backend, succeeded, latency_ms = tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])
local detail, running, waiting = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local most_failures, life_ms = tonumber(ARGV[9]), tonumber(ARGV[10])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

local before = {failures = 0, healthy = true}
local kept = redis.call('HGET', health, backend)
if kept then
  local row = cjson.decode(kept)
  if row.expires_ms > now_ms then before = row end
end
local failures = succeeded and 0 or before.failures + 1
-- One that was unhealthy stays so until a probe succeeds, whatever its count.
local healthy = failures == 0 or (before.healthy and failures < most_failures)
redis.call('HSET', health, backend, cjson.encode({
  healthy = healthy, failures = failures, checked_ms = now_ms, expires_ms = now_ms + life_ms,
  latency_ms = latency_ms, detail = detail, running = running, waiting = waiting}))
-- Another backend of the pool may be probed less often.
if redis.call('PTTL', health) < life_ms then redis.call('PEXPIRE', health, life_ms) end
return {healthy and 1 or 0, before.healthy and 1 or 0}
