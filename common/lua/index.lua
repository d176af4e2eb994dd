#!lua
-- Notes a job among its tenant's, newest last, bounded in number and time.
-- KEYS 1 tenant's jobs (zset)
-- ARGV 1 tenant prefix  2 clock offset ms  3 job id  4 most jobs noted  5 life, ms
-- Returns 0
local jobs = KEYS[1]
local time = redis.call('TIME')
redis.call('ZADD', jobs, time[1] * 1000 + math.floor(time[2] / 1000), ARGV[3])
redis.call('ZREMRANGEBYRANK', jobs, 0, -1 - ARGV[4])
redis.call('PEXPIRE', jobs, ARGV[5])
return 0
