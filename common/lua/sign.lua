#!lua flags=allow-oom
-- Says which ledger keeps this pool's journal, for a while; the mark is gone with everything else where a store lost all.
-- KEYS 1 ledger (string)
-- ARGV 1 pool prefix  2 clock offset ms  3 the ledger's identity  4 how long it stands, ms
-- Returns 0 there was no mark, 1 it was ours already, 2 it is another ledger's and stays
local mark = redis.call('GET', KEYS[1])
if mark and mark ~= ARGV[3] then return 2 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return mark and 1 or 0
