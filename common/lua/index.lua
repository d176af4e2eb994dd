#!lua
-- Notes a job among its tenant's, newest last, bounded in number and time. Safe to send again: it keeps its place.
-- KEYS 1 tenant's jobs (zset), scored by the time in µs
-- ARGV 1 tenant prefix  2 clock offset ms  3 job id  4 most jobs noted  5 life, ms
-- Returns 0
local jobs = KEYS[1]
local time = redis.call('TIME')
redis.call('ZADD', jobs, 'NX', string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2] * 1000), ARGV[3])
redis.call('ZREMRANGEBYRANK', jobs, 0, -1 - ARGV[4])
-- Never sooner than an earlier job's record ends.
if redis.call('PTTL', jobs) < tonumber(ARGV[5]) then redis.call('PEXPIRE', jobs, ARGV[5]) end
return 0
