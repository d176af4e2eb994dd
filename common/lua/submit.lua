#!lua
-- Admits one job: writes its record and puts it in its lane, or among the delayed; or refuses it and writes nothing.
-- Refused are an id or an idempotency key that is taken, a full lane, a tenant with too much waiting, and a job that
-- would not end before its deadline at the pace measured. Runs out of memory cleanly: no allow-oom.
-- KEYS 1 job (hash)  2 lane (zset)  3 lanes (set)  4 fair (hash)  5 deadlines (zset)
--      6 its class's bell (list)  7 stats (hash)  8 waiting (hash)  9 tenant's jobs (zset)
--      10 idempotency (string), where the job has such a key
-- ARGV 1 pool prefix  2 clock offset ms  3 job id  4 lane name  5 spec (JSON)  6 tenant  7 batch key (hex or '')
--      8 cost in tokens  9 deadline in ms from now  10 delay ms  11 max attempts
--      12 on_disconnect  13 on_interrupt  14 gateway whose inbox gets the frames, or ''  15 most jobs in the lane
--      16 how long the record outlives the deadline, ms  17 the tenant's weight  18 most jobs of the tenant that wait
--      19 fingerprint of the body that came with the idempotency key, or ''  20 '1': the ledger has it too
--      21 '1': it was accepted before, and the store lost it: no limit refuses it  22 most jobs in the tenant's list,
--      0: this one is not listed
-- Returns {code, job id, created ms, jobs ahead, wait ms or -1, ms until it may be taken or -1, jobs of the tenant that
--      wait now, this one among them where it was taken, or -1 where that wasn't looked at};
--      code: 0 accepted, 1 duplicate, 2 lane full, 3 tenant has too much waiting, 4 would end too late, 5 key taken by
--      another body
-- Derives `job:`, `bell:` and `held:` keys, and where they are needed `delayed`, `warm`, `workers` and `capacity`.
local job, lane, lanes, fair, deadlines, bell, stats, waiting, jobs, idem = unpack(KEYS)
local prefix, offset_ms, id, lane_name, spec, tenant = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local batch_key, cost, deadline_in_ms, delay_ms = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local most, retention_ms, weight = tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])
local fingerprint = ARGV[19]
local class, model = tonumber(string.sub(lane_name, 1, 1)), string.sub(lane_name, 3)

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset_ms

local function refused(code, of, created_ms, ahead, wait_ms, retry_ms, of_tenant)
  return {code, of, tonumber(created_ms or now_ms), ahead or 0, math.ceil(wait_ms or -1), math.ceil(retry_ms or -1),
    of_tenant or -1}
end

if fingerprint ~= '' then
  local taken = redis.call('GET', idem)
  if taken then
    local other, body = string.match(taken, '^(%S+) (%S+)$')
    local created_ms = redis.call('HGET', prefix .. 'job:' .. other, 'created_ms')
    -- A key whose job is gone (a store that lost part of its data) has no answer to give and is free.
    if created_ms then
      if body ~= fingerprint then return refused(5, other) end
      return refused(1, other, created_ms)
    end
  end
end
if redis.call('EXISTS', job) == 1 then
  local of_tenant = tonumber(redis.call('HGET', waiting, 'j:' .. tenant) or 0)
  return refused(1, id, redis.call('HGET', job, 'created_ms'), nil, nil, nil, of_tenant)
end

-- Where a class has no virtual time yet, its lanes may have times of their own, from an older version.
local function latest_of_lanes()
  local latest, flat = 0, redis.call('HGETALL', fair)
  for i = 1, #flat, 2 do
    if string.sub(flat[i], 1, 4) == 'v:' .. class .. ':' then latest = math.max(latest, tonumber(flat[i + 1])) end
  end
  return latest
end

-- Start-time fair queuing: a tenant's next job starts where its last one ends, never before the class's virtual time;
-- where something of it waits, also not before its last one, whatever it got back since.
local counted = redis.call('HMGET', waiting, 'j:' .. tenant, 't:' .. lane_name, 't:0:' .. model, 't:1:' .. model)
local of_tenant, lane_tokens = tonumber(counted[1] or 0), tonumber(counted[2] or 0)
local times = redis.call('HMGET', fair, 'v:' .. class, 'f:' .. lane_name .. ':' .. tenant, 'm:' .. lane_name)
local ends, last = string.match(times[2] or '0', '^(%S+) ?(%S*)$')
local virtual = times[1] and tonumber(times[1]) or latest_of_lanes()
local starts = math.max(virtual, tonumber(ends))
local tag = of_tenant > 0 and math.max(starts, tonumber(last) or 0) or starts

-- What goes first: the lane's share of jobs with no later tag, and the same model's higher classes.
local depth = redis.call('ZCARD', lane)
local ahead, ahead_tokens = 0, 0
if depth > 0 then
  ahead = redis.call('ZCOUNT', lane, '-inf', tag)
  ahead_tokens = lane_tokens * ahead / depth
end
for higher = 0, class - 1 do
  ahead_tokens = ahead_tokens + math.max(0, tonumber(counted[3 + higher] or 0))
end
local wait_ms = 0
if ahead_tokens > 0 then
  local pace = tonumber(redis.call('HGET', stats, 'drain_tokens_per_s:' .. model) or 0)
  wait_ms = pace > 0 and ahead_tokens / pace * 1000 or nil
end

local accepted = ARGV[21] == '1'
if not accepted and of_tenant >= tonumber(ARGV[18]) then return refused(3, id, nil, of_tenant, wait_ms, nil, of_tenant) end
if not accepted and (depth >= most or (delay_ms > 0 and redis.call('ZCARD', prefix .. 'delayed') >= most)) then
  return refused(2, id, nil, depth, wait_ms, nil, of_tenant)
end
if not accepted and wait_ms and ahead_tokens > 0 and delay_ms == 0 then
  -- With a margin: an estimate that is only just met by half of those taken has the other half cut in mid-answer.
  local service_ms = tonumber(string.match(times[3] or '0', '^%S+'))
  local late_ms = wait_ms * 1.25 + service_ms * 2 - deadline_in_ms
  -- Whoever comes back at the moment it might just fit meets all others who were told the same.
  if late_ms > 0 then return refused(4, id, nil, ahead, wait_ms, math.max(late_ms, wait_ms / 4), of_tenant) end
end

if not times[1] then redis.call('HSET', fair, 'v:' .. class, string.format('%.3f', virtual)) end
-- A delayed one is given its tag, and charged for, when it may begin: waiting for that earns no place in the queue.
local tag_text = ''
if delay_ms == 0 then
  tag_text = string.format('%.3f', tag)
  redis.call('HSET', fair, 'f:' .. lane_name .. ':' .. tenant, string.format('%.3f %s', starts + cost / weight, tag_text))
end
-- Among equal tags the smaller member goes first, so it begins with the time of entry.
local member = string.format('%010d%06d|%s|%s', math.floor(now_ms / 1000),
  (now_ms % 1000) * 1000 + time[2] % 1000, batch_key, id)
local deadline_ms, life_ms = now_ms + deadline_in_ms, deadline_in_ms + retention_ms
local state = delay_ms > 0 and 'delayed' or 'queued'
redis.call('HSET', job, 'state', state, 'spec', spec, 'tenant', tenant, 'lane', lane_name, 'member', member,
  'tag', tag_text, 'created_ms', now_ms, 'deadline_ms', deadline_ms, 'fence', 0, 'max_attempts', ARGV[11],
  'on_disconnect', ARGV[12], 'on_interrupt', ARGV[13], 'cost', cost)
-- Fields that most jobs don't need: without them it has no reader yet, and weighs 1.
if ARGV[14] ~= '' then redis.call('HSET', job, 'inbox', ARGV[14]) end
if weight ~= 1 then redis.call('HSET', job, 'weight', ARGV[17]) end
if ARGV[20] == '1' then redis.call('HSET', job, 'journal', 1) end
redis.call('PEXPIRE', job, life_ms)
if fingerprint ~= '' then
  redis.call('HSET', job, 'idem', string.sub(idem, #prefix + 6))
  redis.call('SET', idem, id .. ' ' .. fingerprint, 'PX', life_ms)
end
redis.call('ZADD', deadlines, deadline_ms, id)
redis.call('HINCRBY', stats, 'submitted', 1)
-- The tenant's list lives as long as its longest-lived record. A minute more than that, and cutting it now and then, is
-- cheaper than setting both each time.
if ARGV[22] ~= '0' then
  redis.call('ZADD', jobs, string.format('%.0f', now_ms * 1000 + time[2] % 1000), id)
  if redis.call('PTTL', jobs) < life_ms then redis.call('PEXPIRE', jobs, life_ms + 60000) end
  if time[2] % 32 == 0 then redis.call('ZREMRANGEBYRANK', jobs, 0, -1 - ARGV[22]) end
end
local answer = {0, id, now_ms, ahead, math.ceil(wait_ms or -1), -1, of_tenant + 1}
if delay_ms > 0 then
  redis.call('HSET', waiting, 'j:' .. tenant, of_tenant + 1)
  redis.call('ZADD', prefix .. 'delayed', now_ms + delay_ms, id)
  return answer
end
redis.call('HSET', waiting, 'j:' .. tenant, of_tenant + 1, 't:' .. lane_name, math.max(0, lane_tokens) + cost)
redis.call('ZADD', lane, tag_text, member)
if depth == 0 then redis.call('SADD', lanes, lane_name) end

-- The worker that served this batch key last has its prefix in the cache: where it is alive and has a slot, it alone is
-- woken, and for a moment others leave the job to it.
local owner = batch_key ~= '' and redis.call('HGET', prefix .. 'warm', batch_key)
if owner and tonumber(redis.call('ZSCORE', prefix .. 'workers', owner) or 0) > now_ms
    and redis.call('HLEN', prefix .. 'held:' .. owner) < tonumber(redis.call('HGET', prefix .. 'capacity', owner) or 0) then
  local own_bell = prefix .. 'bell:' .. owner
  -- A worker that can't answer rings on, where those are called who can.
  if redis.call('LPUSH', own_bell, class) > 256 then redis.call('LTRIM', own_bell, 0, 255) end
  redis.call('PEXPIRE', own_bell, 60000)
elseif redis.call('LLEN', bell) < 256 then
  redis.call('LPUSH', bell, 1)
end
return answer
