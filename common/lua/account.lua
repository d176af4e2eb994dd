#!lua flags=allow-oom
-- Enters what a worker's ended jobs took: in the means of their lanes, in the pool's counters, and in the shares of their
-- tenants, which were charged an estimate. A lost reply leaves it open whether it was entered; nobody sends it again.
-- KEYS 1 fair (hash)  2 stats (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3… for each lane: its name, jobs, what they were estimated to take in tokens, ms
--      that they held a slot, answers that tell how long the lane's are, tokens of these, number of tenants to be put
--      right; then for each of those: tenant, tokens taken above the estimate ÷ weight
-- Returns 0
local fair, stats = unpack(KEYS)

-- Means of the last sixteen or so.
local function moved(mean, sum, count)
  if count == 0 then return mean end
  local seen = sum / count
  return mean and seen + (mean - seen) * (15 / 16) ^ count or seen
end

local i = 3
while i <= #ARGV do
  local lane_name, jobs, cost, busy_ms = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local answers, answer_tokens, tenants = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6])
  local asked = {'m:' .. lane_name}
  for n = 1, tenants do asked[n + 1] = 'f:' .. lane_name .. ':' .. ARGV[i + 5 + 2 * n] end
  local known = redis.call('HMGET', fair, unpack(asked))

  -- How long the lane's jobs hold a slot, and at which cost, for the classes' shares; how long their answers are, for the
  -- gateways' estimates: a third number, once an answer told it.
  local mean_ms, mean_cost, mean_answer = string.match(known[1] or '', '^(%S+) (%S+) ?(%S*)$')
  mean_answer = moved(tonumber(mean_answer), answer_tokens, answers)
  local changed = {asked[1], string.format('%.3f %.3f', moved(tonumber(mean_ms), busy_ms, jobs),
    moved(tonumber(mean_cost), cost, jobs)) .. (mean_answer and string.format(' %.3f', mean_answer) or '')}
  for n = 1, tenants do
    local finish, start = string.match(known[n + 1] or '', '^(%S+) (%S+)$')
    if finish then
      changed[#changed + 1] = asked[n + 1]
      changed[#changed + 1] = string.format('%.3f %s', finish + ARGV[i + 6 + 2 * n], start)
    end
  end
  redis.call('HSET', fair, unpack(changed))
  -- Worked off is what was estimated: what waits is counted so too.
  local model = string.sub(lane_name, 3)
  redis.call('HINCRBY', stats, 'tokens:' .. model, cost)
  redis.call('HINCRBY', stats, 'jobs:' .. model, jobs)
  i = i + 7 + 2 * tenants
end
return 0
