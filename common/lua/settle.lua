#!lua flags=allow-oom
-- Ends a job: last tokens, last stream entry, state, result and counters in one step. The only script that ends one.
-- Safe to send again: a job ends once, and the same end sent twice answers "already".
-- KEYS 1 job (hash)  2 stream (stream)  3 held (hash)  4 deadlines (zset)  5 stats (hash)  6 fair (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 worker id, or '' for a job that is not running  5 fence
--      6 last tokens (JSON, one event a line) or ''  7 their last event's number  8 the outcome's number, or '*'
--      9 outcome (JSON)  10 status  11 result (JSON) or ''  12 '1': the readers' frame carries the result, not tokens
--      13 how long the record stays, ms  14 how long the stream stays, ms  15 '1': attempts used up, list as dead
--      16 most entries kept in an inbox  17 the failed attempt (JSON) or ''  18 how long an idempotency key stays, ms
--      19 how long the record outlives its deadline as long as it has not ended, ms
-- Returns {code, ms that it held a slot}; code: 0 ended, 1 refused (not the owner, or in another state), 2 unknown job,
--      3 already ended this way
-- Derives `lane:`, `inbox:` and `idem:` keys, and where they are needed `abandoned`, `dead`, `delayed`, `lanes`, `waiting`
--      and `ended`.
local job, stream, held, deadlines, stats, fair = unpack(KEYS)
local prefix, offset_ms, id, worker, fence = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local events, events_seq, outcome_seq, outcome = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local status, result, share_result = ARGV[10], ARGV[11], ARGV[12] == '1'

local field = redis.call('HMGET', job, 'state', 'worker', 'fence', 'inbox', 'started_ms', 'credit', 'journal', 'idem',
  'errors', 'deadline_ms')
local state = field[1]
if not state then return {2, 0} end
if state ~= 'running' and state ~= 'queued' and state ~= 'delayed' then
  return {(state == status and field[3] == fence) and 3 or 1, 0}
end
if field[3] ~= fence then return {1, 0} end
if worker ~= '' and (state ~= 'running' or field[2] ~= worker) then return {1, 0} end
if worker == '' and state == 'running' then return {1, 0} end

-- A job that waits leaves the queue, and its tenant gets back what it was charged. One that was never charged (delayed)
-- has no tag.
if worker == '' then
  local own = redis.call('HMGET', job, 'lane', 'member', 'tenant', 'cost', 'weight', 'tag')
  local lane_name, tenant, cost, waiting = own[1], own[3], tonumber(own[4] or 1), prefix .. 'waiting'
  if state == 'delayed' then
    redis.call('ZREM', prefix .. 'delayed', id)
  else
    local lane = prefix .. 'lane:' .. lane_name
    if redis.call('ZREM', lane, own[2]) == 1 then redis.call('HINCRBY', waiting, 't:' .. lane_name, -cost) end
    if redis.call('EXISTS', lane) == 0 then
      redis.call('SREM', prefix .. 'lanes', lane_name)
      redis.call('HDEL', waiting, 't:' .. lane_name)
    end
  end
  if redis.call('HINCRBY', waiting, 'j:' .. tenant, -1) <= 0 then redis.call('HDEL', waiting, 'j:' .. tenant) end
  local times = 'f:' .. lane_name .. ':' .. tenant
  local finish, start = string.match(own[4] and own[6] ~= '' and redis.call('HGET', fair, times) or '', '^(%S+) (%S+)$')
  if finish then
    redis.call('HSET', fair, times, string.format('%.3f %s', finish - cost / tonumber(own[5] or 1), start))
  end
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms
local frame = {}
if events ~= '' then
  local position = fence .. '-' .. events_seq
  -- Already there when a try's reply was lost after an append; then it is the same text.
  redis.pcall('XADD', stream, position, 'c', events)
  if not share_result then frame = {id, position, 'c', events} end
end
local added = redis.pcall('XADD', stream, fence .. '-' .. outcome_seq, 'o', outcome)
if type(added) ~= 'string' then added = redis.call('XADD', stream, fence .. '-*', 'o', outcome) end
local last = #frame
frame[last + 1], frame[last + 2], frame[last + 3], frame[last + 4] = id, added, 'o', outcome
if share_result then
  frame[last + 5], frame[last + 6] = 'r', result
end

if result == '' then
  redis.call('HSET', job, 'state', status, 'outcome', outcome, 'finished_ms', now_ms)
else
  redis.call('HSET', job, 'state', status, 'outcome', outcome, 'finished_ms', now_ms, 'result', result)
end
-- Whoever asks again with the same key gets this answer, so the record stays as long as the key.
local idem, left_ms = field[8], tonumber(field[10]) - now_ms
if idem then redis.call('PEXPIRE', prefix .. 'idem:' .. idem, ARGV[18]) end
-- A record that would go by itself before a quarter more than its time has passed is left at that.
local life_ms = idem and math.max(tonumber(ARGV[13]), tonumber(ARGV[18])) or tonumber(ARGV[13])
if left_ms < 0 or left_ms + ARGV[19] > life_ms * 1.25 then redis.call('PEXPIRE', job, life_ms) end
redis.call('PEXPIRE', stream, ARGV[14])
redis.call('ZREM', deadlines, id)
-- Only a job whose last reader left is among the abandoned, and then it has an inbox without names.
if field[4] == '' then redis.call('ZREM', prefix .. 'abandoned', id) end
redis.call('HINCRBY', stats, status, 1)
local busy_ms = 0
if worker ~= '' then
  redis.call('HDEL', held, id)
  busy_ms = math.max(0, now_ms - tonumber(field[5]))
  -- The classes' accounts were charged what it was likely to take.
  if field[6] and field[6] ~= '' then
    local likely_ms = tonumber(string.match(field[6], '^%S+'))
    for class, factor in string.gmatch(field[6], '(%d):(%S+)') do
      redis.call('HINCRBYFLOAT', fair, 'c:' .. class, factor * (busy_ms - likely_ms))
    end
  end
end
if ARGV[17] ~= '' then redis.call('HSET', job, 'errors', (field[9] and field[9] .. '\n' or '') .. ARGV[17]) end
if field[7] then redis.call('XADD', prefix .. 'ended', '*', 'id', id, 'status', status) end
if ARGV[15] == '1' then
  redis.call('ZADD', prefix .. 'dead', now_ms, id)
  redis.call('ZREMRANGEBYRANK', prefix .. 'dead', 0, -10001)
end
for gateway in string.gmatch(field[4] or '', '[^,]+') do
  redis.call('XADD', prefix .. 'inbox:' .. gateway, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[16], '*', unpack(frame))
end
return {0, busy_ms}
