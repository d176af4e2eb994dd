#!lua flags=allow-oom
-- Ends a job: last tokens, last stream entry, state, result and counters in one step. The only script that ends one.
-- Safe to send again: a job ends once, and the same end sent twice answers "already".
-- KEYS 1 job (hash)  2 stream (stream)  3 held (hash)  4 deadlines (zset)  5 stats (hash)  6 fair (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 worker id, or '' for a job that is not running  5 fence
--      6 last tokens (JSON, one event a line) or ''  7 their last event's number  8 the outcome's number, or '*'
--      9 outcome (JSON)  10 status  11 result (JSON) or ''  12 '1': the readers' frame carries the result, not tokens
--      13 how long the record stays, ms  14 how long the stream stays, ms  15 '1': attempts used up, list as dead
--      16 most entries kept in an inbox  17 tokens used  18 the failed attempt (JSON) or ''
--      19 how long an idempotency key stays, ms  20 how long the answer was, in tokens, or 0: it tells nothing
--      21 how long the record outlives its deadline as long as it has not ended, ms
-- Returns 0 ended, 1 refused (not the owner, or in another state), 2 unknown job, 3 already ended this way
-- Derives `lane:`, `inbox:` and `idem:` keys, and where they are needed `abandoned`, `dead`, `delayed`, `lanes`, `waiting`
--      and `ended`.
local job, stream, held, deadlines, stats, fair = unpack(KEYS)
local prefix, offset_ms, id, worker, fence = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local events, events_seq, outcome_seq, outcome = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local status, result, share_result = ARGV[10], ARGV[11], ARGV[12] == '1'

local field = redis.call('HMGET', job, 'state', 'worker', 'fence', 'inbox', 'lane', 'member', 'tenant', 'cost',
  'weight', 'credit', 'started_ms', 'journal', 'idem', 'errors', 'tag', 'deadline_ms')
local state, lane_name, tenant, cost = field[1], field[5], field[7], tonumber(field[8] or 1)
if not state then return 2 end
if state ~= 'running' and state ~= 'queued' and state ~= 'delayed' then
  return (state == status and field[3] == fence) and 3 or 1
end
if field[3] ~= fence then return 1 end
if worker ~= '' then
  if state ~= 'running' or field[2] ~= worker then return 1 end
elseif state == 'running' then
  return 1
elseif state == 'delayed' then
  redis.call('ZREM', prefix .. 'delayed', id)
else
  local lane, waiting = prefix .. 'lane:' .. lane_name, prefix .. 'waiting'
  if redis.call('ZREM', lane, field[6]) == 1 then redis.call('HINCRBY', waiting, 't:' .. lane_name, -cost) end
  if redis.call('EXISTS', lane) == 0 then
    redis.call('SREM', prefix .. 'lanes', lane_name)
    redis.call('HDEL', waiting, 't:' .. lane_name)
  end
end
if worker == '' and redis.call('HINCRBY', prefix .. 'waiting', 'j:' .. tenant, -1) <= 0 then
  redis.call('HDEL', prefix .. 'waiting', 'j:' .. tenant)
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
local idem, left_ms = field[13], tonumber(field[16] or 0) - now_ms
if idem then redis.call('PEXPIRE', prefix .. 'idem:' .. idem, ARGV[19]) end
-- A record that would go by itself before a quarter more than its time has passed is left at that.
local life_ms = idem and math.max(tonumber(ARGV[13]), tonumber(ARGV[19])) or tonumber(ARGV[13])
if left_ms < 0 or left_ms + ARGV[21] > life_ms * 1.25 then redis.call('PEXPIRE', job, life_ms) end
redis.call('PEXPIRE', stream, ARGV[14])
redis.call('ZREM', deadlines, id)
-- Only a job whose last reader left is among the abandoned, and then it has an inbox without names.
if field[4] == '' then redis.call('ZREM', prefix .. 'abandoned', id) end
if worker ~= '' then redis.call('HDEL', held, id) end
if ARGV[18] ~= '' then
  redis.call('HSET', job, 'errors', (field[14] and field[14] .. '\n' or '') .. ARGV[18])
end

-- The estimate was charged to its tenant; what is charged in the end is what was used, and nothing for one that only
-- waited. One that was never charged (delayed, or of an older version) has no tag or no cost of its own.
local tokens = worker ~= '' and tonumber(ARGV[17]) or 0
local times, means, model = 'f:' .. lane_name .. ':' .. tenant, 'm:' .. lane_name, string.sub(lane_name, 3)
local known = redis.call('HMGET', fair, times, means)
local changed = {}
if field[8] and field[15] ~= '' and tokens ~= cost then
  local finish, start = string.match(known[1] or '', '^(%S+) (%S+)$')
  if finish then
    changed = {times, string.format('%.3f %s', finish + (tokens - cost) / tonumber(field[9] or 1), start)}
  end
end
if worker == '' then
  redis.call('HINCRBY', stats, status, 1)
else
  local counted, busy_ms = redis.call('HMGET', stats, status, 'worked:' .. model), math.max(0, now_ms - tonumber(field[11]))
  -- Worked off is what was estimated: what waits is counted so too.
  local jobs, worked_tokens = string.match(counted[2] or '0 0', '^(%d+) (%d+)$')
  redis.call('HSET', stats, status, (counted[1] or 0) + 1, 'worked:' .. model,
    string.format('%d %d', jobs + 1, worked_tokens + cost))
  -- How long the lane's jobs hold a slot, and at which cost: means of the last sixteen or so, for the classes' shares.
  -- How long their answers are, for the gateways' estimates: a third number, once an answer told it.
  local mean_ms, mean_cost, mean_answer = string.match(known[2] or '', '^(%S+) (%S+) ?(%S*)$')
  mean_ms, mean_cost, mean_answer = tonumber(mean_ms) or busy_ms, tonumber(mean_cost) or cost, tonumber(mean_answer)
  local answer = tonumber(ARGV[20])
  if answer > 0 then mean_answer = mean_answer and mean_answer + (answer - mean_answer) / 16 or answer end
  changed[#changed + 1] = means
  changed[#changed + 1] = string.format('%.3f %.3f', mean_ms + (busy_ms - mean_ms) / 16,
    mean_cost + (cost - mean_cost) / 16) .. (mean_answer and string.format(' %.3f', mean_answer) or '')
  local likely_ms = tonumber(string.match(field[10] or '', '^%S+'))
  for class, factor in string.gmatch(field[10] or '', '(%d):(%S+)') do
    redis.call('HINCRBYFLOAT', fair, 'c:' .. class, factor * (busy_ms - likely_ms))
  end
end
if #changed > 0 then redis.call('HSET', fair, unpack(changed)) end
if field[12] then redis.call('XADD', prefix .. 'ended', '*', 'id', id, 'status', status) end
if ARGV[15] == '1' then
  redis.call('ZADD', prefix .. 'dead', now_ms, id)
  redis.call('ZREMRANGEBYRANK', prefix .. 'dead', 0, -10001)
end
for gateway in string.gmatch(field[4] or '', '[^,]+') do
  redis.call('XADD', prefix .. 'inbox:' .. gateway, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[16], '*', unpack(frame))
end
return 0
