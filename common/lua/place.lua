#!lua flags=allow-oom
-- Tells where several jobs stand in the queue: how many go before them, and how long that takes at the pace measured.
-- KEYS 1 stats (hash)  2 waiting (hash)
-- ARGV 1 pool prefix  2 clock offset ms  3… job ids
-- Returns for each job: its state ('' when unknown), jobs ahead or -1 where it does not wait in a lane, wait ms or -1
-- Derives `job:` and `lane:` keys.
local stats, waiting = unpack(KEYS)
local prefix = ARGV[1]

-- The wait of a job with so many ahead of it in its lane: those, and all of the same model's higher classes.
local function wait_ms(lane_name, ahead)
  local class, model = tonumber(string.sub(lane_name, 1, 1)), string.sub(lane_name, 3)
  local depth = redis.call('ZCARD', prefix .. 'lane:' .. lane_name)
  local tokens = tonumber(redis.call('HGET', waiting, 't:' .. lane_name) or 0) * ahead / math.max(1, depth)
  for higher = 0, class - 1 do
    tokens = tokens + math.max(0, tonumber(redis.call('HGET', waiting, 't:' .. higher .. ':' .. model) or 0))
  end
  if tokens == 0 then return 0 end
  local pace = tonumber(redis.call('HGET', stats, 'drain_tokens_per_s:' .. model) or 0)
  return pace > 0 and math.ceil(tokens / pace * 1000) or -1
end

local reply = {}
for i = 3, #ARGV do
  local field = redis.call('HMGET', prefix .. 'job:' .. ARGV[i], 'state', 'lane', 'member')
  local ahead = field[1] == 'queued' and redis.call('ZRANK', prefix .. 'lane:' .. field[2], field[3])
  reply[#reply + 1] = field[1] or ''
  reply[#reply + 1] = ahead or -1
  reply[#reply + 1] = ahead and wait_ms(field[2], ahead) or -1
end
return reply
