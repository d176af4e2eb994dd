#!lua flags=allow-oom
-- Ends a job: last tokens, last stream entry, state, result and counters in one step. The only script that ends one.
-- Safe to send again: a job ends once, and the same end sent twice answers "already".
-- KEYS 1 job (hash)  2 stream (stream)  3 held (hash)  4 deadlines (zset)  5 stats (hash)  6 abandoned (zset)
--      7 dead (zset)  8 delayed (zset)  9 lanes (set)  10 fair (hash)  11 waiting (hash)  12 ended (stream)
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 worker id, or '' for a job that is not running  5 fence
--      6 last tokens (JSON, one event a line) or ''  7 their last event's number  8 the outcome's number, or '*'
--      9 outcome (JSON)  10 status  11 result (JSON) or ''  12 '1': the readers' frame carries the result, not tokens
--      13 how long the record stays, ms  14 how long the stream stays, ms  15 '1': attempts used up, list as dead
--      16 most entries kept in an inbox  17 tokens used  18 the failed attempt (JSON) or ''
--      19 how long an idempotency key stays, ms  20 how long the answer was, in tokens, or 0: it tells nothing
-- Returns 0 ended, 1 refused (not the owner, or in another state), 2 unknown job, 3 already ended this way
-- Derives `lane:`, `inbox:` and `idem:` keys.
local job, stream, held, deadlines, stats, abandoned, dead, delayed, lanes, fair, waiting, ended = unpack(KEYS)
local prefix, offset_ms, id, worker, fence = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local events, events_seq, outcome_seq, outcome = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local status, result, share_result = ARGV[10], ARGV[11], ARGV[12] == '1'

local field = redis.call('HMGET', job, 'state', 'worker', 'fence', 'inbox', 'lane', 'member', 'tenant', 'cost',
  'weight', 'credit', 'started_ms', 'journal', 'idem', 'errors', 'tag')
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
  redis.call('ZREM', delayed, id)
else
  local lane = prefix .. 'lane:' .. lane_name
  if redis.call('ZREM', lane, field[6]) == 1 then redis.call('HINCRBY', waiting, 't:' .. lane_name, -cost) end
  if redis.call('EXISTS', lane) == 0 then
    redis.call('SREM', lanes, lane_name)
    redis.call('HDEL', waiting, 't:' .. lane_name)
  end
end
if worker == '' and redis.call('HINCRBY', waiting, 'j:' .. tenant, -1) <= 0 then
  redis.call('HDEL', waiting, 'j:' .. tenant)
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
local idem = field[13]
if idem then redis.call('PEXPIRE', prefix .. 'idem:' .. idem, ARGV[19]) end
redis.call('PEXPIRE', job, idem and math.max(tonumber(ARGV[13]), tonumber(ARGV[19])) or ARGV[13])
redis.call('PEXPIRE', stream, ARGV[14])
redis.call('ZREM', deadlines, id)
redis.call('ZREM', abandoned, id)
if worker ~= '' then redis.call('HDEL', held, id) end
redis.call('HINCRBY', stats, status, 1)
if ARGV[18] ~= '' then
  redis.call('HSET', job, 'errors', (field[14] and field[14] .. '\n' or '') .. ARGV[18])
end

-- The estimate was charged to its tenant; what is charged in the end is what was used, and nothing for one that only
-- waited. One that was never charged (delayed, or of an older version) has no tag or no cost of its own.
local tokens = worker ~= '' and tonumber(ARGV[17]) or 0
local times, means = 'f:' .. lane_name .. ':' .. tenant, 'm:' .. lane_name
local known = redis.call('HMGET', fair, times, means)
local changed = {}
if field[8] and field[15] ~= '' and tokens ~= cost then
  local finish, start = string.match(known[1] or '', '^(%S+) (%S+)$')
  if finish then
    changed = {times, string.format('%.3f %s', finish + (tokens - cost) / tonumber(field[9]), start)}
  end
end
if worker ~= '' then
  local model, busy_ms = string.sub(lane_name, 3), math.max(0, now_ms - tonumber(field[11]))
  -- Worked off is what was estimated: what waits is counted so too.
  redis.call('HINCRBY', stats, 'tokens:' .. model, cost)
  redis.call('HINCRBY', stats, 'jobs:' .. model, 1)
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
if field[12] then redis.call('XADD', ended, '*', 'id', id, 'status', status) end
if ARGV[15] == '1' then
  redis.call('ZADD', dead, now_ms, id)
  redis.call('ZREMRANGEBYRANK', dead, 0, -10001)
end
for gateway in string.gmatch(field[4] or '', '[^,]+') do
  redis.call('XADD', prefix .. 'inbox:' .. gateway, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[16], '*', unpack(frame))
end
return 0
