#!lua flags=allow-oom
-- Renews a worker's lease on a backend's slots and says how many it may use now: its max-min fair share by what all want,
-- as far as the others' leases leave it. A worker counts with the most of what it is told, what it still uses and what it
-- was told before (by which it may begin calls until this reply reaches it), so no grant takes the sum above the most.
-- What a division leaves over goes round, a lease's time at each.
-- KEYS 1 slots (hash worker id -> '<granted> <wanted> <in use> <lease's end ms> <told before>')
-- ARGV 1 backend's prefix  2 clock offset ms  3 worker id  4 slots wanted, those in use among them  5 slots in use
--      6 most slots of the backend  7 lease ms  8 slots that the worker was told last, as far as it knows
-- Returns the slots granted
local slots = KEYS[1]
local offset_ms, worker, want, in_use = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local most, lease_ms, before = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

local wanting, reserved = {{id = worker, want = want}}, 0
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do
  local granted, wanted, used, ends_ms, told = string.match(flat[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if tonumber(ends_ms) <= now_ms then
    redis.call('HDEL', slots, flat[i])
  elseif flat[i] ~= worker then
    wanting[#wanting + 1] = {id = flat[i], want = tonumber(wanted)}
    reserved = reserved + math.max(tonumber(granted), tonumber(used), tonumber(told))
  end
end

-- Those that want little get it; the level is what is left for each of the others.
table.sort(wanting, function(a, b) return a.want < b.want end)
local left, level, hungry = most, 0, {}
for i, one in ipairs(wanting) do
  level = math.floor(left / (#wanting - i + 1))
  if one.want > level then
    for j = i, #wanting do hungry[#hungry + 1] = wanting[j].id end
    break
  end
  left = left - one.want
end

local share = want
if want > level and #hungry > 0 then
  table.sort(hungry)
  local turn = math.floor(now_ms / lease_ms) % #hungry
  local over = left - level * #hungry
  share = level
  for i, id in ipairs(hungry) do
    if id == worker and (i - 1 - turn) % #hungry < over then share = level + 1 end
  end
end

local granted = math.max(0, math.min(share, most - reserved))
local row = string.format('%.0f %.0f %.0f %.0f %.0f', granted, want, in_use, now_ms + lease_ms, before)
redis.call('HSET', slots, worker, row)
if redis.call('PTTL', slots) < lease_ms then redis.call('PEXPIRE', slots, lease_ms) end
return granted
