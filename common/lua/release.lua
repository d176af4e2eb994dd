#!lua flags=allow-oom
-- Puts a running job back: at its old place, or among the delayed for a retry. Where it may not run again it changes
-- nothing and says why; the caller then settles it, with the same owner and fence.
-- KEYS 1 job (hash)  2 stream (stream)  3 held (hash)  4 lanes (set)  5 bell (list)  6 delayed (zset)
--      7 waiting (hash)  8 stats (hash)  9 fair (hash)  10 urgent bell (list)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 worker id  5 fence  6 '1': counts as a failed attempt
--      7 delay before it may run again, ms  8 the failed attempt (JSON) or ''  9 '1': it gave way to an urgent one
-- Returns 0 put back, 1 refused (not the owner), 2 readers have tokens and a restart was not allowed,
--      3 attempts used up, 4 its cancellation was asked for, 5 past its deadline
-- Derives `lane:` keys.
local job, stream, held, lanes, _, delayed, waiting, stats, fair = unpack(KEYS)
local prefix, offset_ms, id, worker, fence = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local counts, delay_ms = ARGV[6] == '1', tonumber(ARGV[7])

local field = redis.call('HMGET', job, 'state', 'worker', 'fence', 'failures', 'max_attempts', 'on_interrupt',
  'cancel', 'deadline_ms', 'lane', 'tag', 'member', 'tenant', 'cost', 'errors',
  'credit', 'started_ms')
if field[1] ~= 'running' or field[2] ~= worker or field[3] ~= fence then return 1 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

if field[7] then return 4 end
if tonumber(field[8]) <= now_ms + delay_ms then return 5 end
if field[6] == 'fail' then
  local top = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  if #top > 0 and top[1][1] ~= fence .. '-0' then return 2 end
end
local failures = tonumber(field[4] or 0)
if counts then
  failures = failures + 1
  if failures >= tonumber(field[5]) then return 3 end
end

redis.call('HDEL', held, id)
-- The classes' accounts were charged what it was likely to take.
local likely_ms = tonumber(string.match(field[15] or '', '^%S+'))
for class, factor in string.gmatch(field[15] or '', '(%d):(%S+)') do
  redis.call('HINCRBYFLOAT', fair, 'c:' .. class, factor * (math.max(0, now_ms - tonumber(field[16])) - likely_ms))
end
if ARGV[8] ~= '' then
  redis.call('HSET', job, 'errors', (field[14] and field[14] .. '\n' or '') .. ARGV[8])
end
if ARGV[9] == '1' then
  redis.call('HINCRBY', job, 'preemptions', 1)
  redis.call('HINCRBY', stats, 'preempted', 1)
end
redis.call('HINCRBY', waiting, 'j:' .. field[12], 1)
redis.call('HSET', job, 'state', delay_ms > 0 and 'delayed' or 'queued', 'worker', '', 'failures', failures)
if delay_ms > 0 then
  redis.call('ZADD', delayed, now_ms + delay_ms, id)
  return 0
end
redis.call('ZADD', prefix .. 'lane:' .. field[9], field[10], field[11])
redis.call('SADD', lanes, field[9])
redis.call('HINCRBY', waiting, 't:' .. field[9], field[13] or 1)
local its_bell = KEYS[string.sub(field[9], 1, 1) == '0' and 10 or 5]
if redis.call('LLEN', its_bell) < 256 then redis.call('LPUSH', its_bell, 1) end
return 0
