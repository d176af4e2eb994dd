#!lua flags=allow-oom
-- A backend's breaker: asked before a call while it isn't closed, and told how calls ended. It opens after so many
-- failures in a row; when the cool-off is over one worker of the fleet holds the probe until it reports, gives it back
-- or its time is up. While it is open only the present probe's report counts: an old call's failure extends nothing,
-- its success closes nothing.
-- KEYS 1 breaker (hash: failures, open_until_ms while not closed, prober and probe_until_ms while a probe is held)
-- ARGV 1 backend's prefix  2 clock offset ms  3 'ask', 'failed', 'succeeded' or 'released'  4 worker id
--      5 '1': the report is of a probe  6 failures in a row that open it  7 cool-off ms  8 how long a probe is held, ms
--      9 how long it is remembered when nothing happens, ms
-- Returns {0 pass, 1 probe, 2 refused (0 to a report), failures, open until ms (0: closed), probe held until ms, now ms}
local breaker = KEYS[1]
local offset_ms, what, worker, of_probe = tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5] == '1'
local most_failures, cooloff_ms, probe_ms, life_ms =
  tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

local field = redis.call('HMGET', breaker, 'failures', 'open_until_ms', 'prober', 'probe_until_ms')
local failures, open_until_ms = tonumber(field[1] or 0), tonumber(field[2] or 0)
local prober, probe_until_ms = field[3], tonumber(field[4] or 0)
local closed, held = open_until_ms == 0, probe_until_ms > now_ms

local function keep(...)
  redis.call('HSET', breaker, 'failures', failures, ...)
  redis.call('PEXPIRE', breaker, life_ms)
end

local function open()
  open_until_ms, probe_until_ms = now_ms + cooloff_ms, 0
  redis.call('HDEL', breaker, 'prober', 'probe_until_ms')
  keep('open_until_ms', open_until_ms)
end

local verdict = 0
if what == 'ask' then
  if not closed then
    verdict = 2
    if open_until_ms <= now_ms and not held then
      verdict, probe_until_ms = 1, now_ms + probe_ms
      keep('prober', worker, 'probe_until_ms', probe_until_ms)
    end
  end
elseif what == 'released' then
  if not closed and held and prober == worker then
    probe_until_ms = 0
    redis.call('HDEL', breaker, 'prober', 'probe_until_ms')
    redis.call('PEXPIRE', breaker, life_ms)
  end
elseif closed or (of_probe and held and prober == worker) then
  if what == 'succeeded' then
    failures, open_until_ms, probe_until_ms = 0, 0, 0
    redis.call('DEL', breaker)
  else
    failures = failures + 1
    if not closed or failures >= most_failures then open() else keep() end
  end
end
return {verdict, failures, open_until_ms, probe_until_ms, now_ms}
