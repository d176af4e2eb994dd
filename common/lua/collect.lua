#!lua flags=allow-oom
-- Lists journaled jobs that ended and are not in the ledger yet: first what this reader already has, then what another
-- one left lying, then what nobody has seen. Makes the readers' group where there is none (a fresh or emptied store).
-- KEYS 1 ended (stream)
-- ARGV 1 pool prefix  2 clock offset ms  3 group  4 reader  5 most entries  6 how long another's must lie, ms
-- Returns a flat list of (entry id, job id, status)
local ended = KEYS[1]
local group, reader, most, lying_ms = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]

local function read(from)
  local streams = redis.call('XREADGROUP', 'GROUP', group, reader, 'COUNT', most, 'STREAMS', ended, from)
  return streams and streams[1][2] or {}
end

redis.pcall('XGROUP', 'CREATE', ended, group, '0', 'MKSTREAM')
local entries = read('0')
if #entries == 0 then entries = redis.call('XAUTOCLAIM', ended, group, reader, lying_ms, '0-0', 'COUNT', most)[2] end
if #entries == 0 then entries = read('>') end

local reply = {}
for _, entry in ipairs(entries) do
  if entry and entry[2] then
    local last = #reply
    reply[last + 1], reply[last + 2], reply[last + 3] = entry[1], entry[2][2], entry[2][4]
  end
end
return reply
