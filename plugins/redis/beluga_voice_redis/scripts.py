"""What Redis does in one step: four scripts over the three keys of a session.

`own` names the owner as long as its lease runs, `epoch` is the greatest epoch given, `state` the bytes. `epoch` lives
KEEP_MS from its last use, and is never shortened, so it outlives every claim that some owner may still believe in.

An epoch is the time in µs when it was given, or one more than the last: it does not repeat when everything known of a
session is gone and it begins anew (below 2^53 until the year 2255, so Lua's numbers hold it).

HELD is "1" for an epoch that this owner was given and that cannot have expired. If Redis knows none or a smaller one, it has
lost data (a restart, a failover to a replica that lagged): the greatest epoch is put back by whoever holds it.
"""

from __future__ import annotations

__all__ = ["CLAIM", "DELETE", "RENEW", "SAVE"]

FENCE = """
local function owns(key, epoch, held)
    local last = redis.call('GET', key)
    if last == epoch then
        return 1
    end
    if held == '1' and (not last or tonumber(last) < tonumber(epoch)) then
        return 2
    end
    return 0
end
local function set_epoch(key, epoch, ms)
    redis.call('SET', key, epoch, 'PX', math.max(redis.call('PTTL', key), ms))
end
"""

# KEYS own epoch state; ARGV owner lease_ms keep_ms force
CLAIM = (
    FENCE
    + """
if ARGV[4] == '0' and redis.call('EXISTS', KEYS[1]) == 1 then
    return false
end
local now = redis.call('TIME')
local last = redis.call('GET', KEYS[2]) or '0'
local epoch = string.format('%.0f', math.max(tonumber(now[1]) * 1000000 + tonumber(now[2]), tonumber(last) + 1))
set_epoch(KEYS[2], epoch, tonumber(ARGV[3]))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {epoch, redis.call('GET', KEYS[3])}
"""
)

# KEYS own epoch state; ARGV epoch held owner lease_ms keep_ms
RENEW = (
    FENCE
    + """
local found = owns(KEYS[2], ARGV[1], ARGV[2])
if found > 0 then
    set_epoch(KEYS[2], ARGV[1], tonumber(ARGV[5]))
    redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return found
"""
)

# KEYS own epoch state; ARGV epoch held state ttl_ms keep_ms
SAVE = (
    FENCE
    + """
local found = owns(KEYS[2], ARGV[1], ARGV[2])
if found > 0 then
    set_epoch(KEYS[2], ARGV[1], tonumber(ARGV[5]))
    redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
end
return found
"""
)

# KEYS own epoch state; ARGV epoch held. What is left of the epoch, raised by one, fences every owner there was.
DELETE = (
    FENCE
    + """
local found = owns(KEYS[2], ARGV[1], ARGV[2])
if found > 0 then
    redis.call('DEL', KEYS[1], KEYS[3])
    local left = redis.call('PTTL', KEYS[2])
    if left > 0 then
        redis.call('SET', KEYS[2], string.format('%.0f', tonumber(ARGV[1]) + 1), 'PX', left)
    end
end
return found
"""
)
