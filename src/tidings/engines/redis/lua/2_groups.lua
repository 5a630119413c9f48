-- Groups: what they want, and the queue of each.
--
-- A queue holds positions only: `fresh` (a stream, in the order of the log), `ready` (what comes before its turn in
-- that order: returned, redriven, backfilled), `leased` and `delayed` (by when that ends), `parked`. `items` has the
-- story of those that were handed out before, `copies` the entries of those that are no longer as the log has them.

local known = {} -- namespace -> its groups, as of a version of them

local function queue_of(ns, name)
  local function part(of)
    return key(ns, 'g:' .. name .. ':' .. of)
  end
  return {
    name = name,
    bell = 'ready:' .. name,
    shape = part('shape'),
    fill = part('fill'),
    fresh = part('fresh'),
    ready = part('ready'),
    leased = part('leased'),
    delayed = part('delayed'),
    parked = part('parked'),
    items = part('items'),
    copies = part('copies'),
    dead = part('dead'),
    letters = part('letters'),
  }
end

local function claims_of(lines)
  local claims = {}
  for _, line in ipairs(split(lines or '', '\n')) do
    claims[#claims + 1] = cjson.decode(line)
  end
  return claims
end

local function read_group(ns, name)
  local group = queue_of(ns, name)
  local shape = redis.call('HMGET', group.shape, 'lease', 'paused', 'claims', 'ordered')
  group.lease = tonumber(shape[1])
  group.paused = shape[2] == '1'
  group.ordered = shape[4] == '1'
  group.lines = shape[3] or ''
  group.claims = claims_of(group.lines)
  return group
end

local function groups_of(s)
  local kept = known[s.ns]
  if not kept or kept.version ~= s.version then
    kept = {version = s.version, groups = {}, routes = {}, routed = 0}
    for _, name in ipairs(redis.call('SMEMBERS', key(s.ns, 'groups'))) do
      kept.groups[name] = read_group(s.ns, name)
    end
    known[s.ns] = kept
  end
  return kept
end

local function group_of(s, name)
  local group = groups_of(s).groups[name]
  if not group then
    refuse('CONFLICT', 'group ' .. name .. ' is not declared: start its worker once, or it was removed meanwhile')
  end
  return group
end

-- Whether a claim that matches the subject reaches the position.
local function reaches(claim, subject, position)
  if position < claim.since then
    return false
  end
  for _, skip in ipairs(claim.skip) do
    if position >= skip.since and position <= skip.upto and matches(skip.filter, subject) then
      return false
    end
  end
  return true
end

local function wants(claims, subject, position)
  for _, claim in ipairs(claims) do
    if matches(claim.filter, subject) and reaches(claim, subject, position) then
      return true
    end
  end
  return false
end

-- The claims that match the subject, by group.
local function routes_of(s, subject)
  local kept = groups_of(s)
  local found = kept.routes[subject]
  if not found then
    found = {}
    for _, group in pairs(kept.groups) do
      local claims = {}
      for _, claim in ipairs(group.claims) do
        if matches(claim.filter, subject) then
          claims[#claims + 1] = claim
        end
      end
      if #claims > 0 then
        found[#found + 1] = {group = group, claims = claims}
      end
    end
    if kept.routed >= 10000 then
      kept.routes, kept.routed = {}, 0
    end
    kept.routes[subject], kept.routed = found, kept.routed + 1
  end
  return found
end

local function waiting(group)
  return redis.call('XLEN', group.fresh) + redis.call('ZCARD', group.ready)
end

-- Who waits for a group found its queue empty, so only what comes into an empty queue has to wake somebody.
local function wake(s, group)
  if s.bells[group.bell] or s.quiet[group.bell] or group.paused then
    return
  end
  local asleep = waiting(group) == 0 and s.bells or s.quiet
  asleep[group.bell] = true
end

local function give(s, group, position)
  wake(s, group)
  redis.call('ZADD', group.ready, position, text(position))
end

local function give_fresh(s, group, position)
  wake(s, group)
  redis.call('XADD', group.fresh, text(position) .. '-0', '', '')
end

local function is_fresh(group, position)
  local id = text(position) .. '-0'
  return #redis.call('XRANGE', group.fresh, id, id) > 0
end

-- Where the group has the entry: `waiting`, `leased`, `delayed`, `parked`, or nil when it has nothing to do with it.
local function place_of(group, position)
  local member = text(position)
  if redis.call('ZSCORE', group.leased, member) then
    return 'leased'
  elseif redis.call('ZSCORE', group.delayed, member) then
    return 'delayed'
  elseif group.ordered and redis.call('ZSCORE', group.parked, member) then
    return 'parked'
  elseif redis.call('ZSCORE', group.ready, member) or is_fresh(group, position) then
    return 'waiting'
  end
end

-- An item: deliveries, attempts, crashes, the token of the newest lease, replay, whether it has a copy, last failure;
-- in ordered groups also until when its holder keeps it, what it is parked behind, whether a person has dropped it; how
-- often it was handed back.
-- Of what was handed out once and has no story yet, the token is kept alone.
local DELIVERIES, ATTEMPTS, CRASHES, TOKEN, REPLAY, COPIED, FAILURE, KEPT, BEHIND, DROPPED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local RETURNED = 11
local ELEVEN = 0x90 + 11 -- how a packed list of eleven begins; no token begins so

local function opened(packed)
  return string.byte(packed) == ELEVEN and cmsgpack.unpack(packed) or {1, 0, 0, packed, '', 0, '', 0, 0, 0, 0}
end

local function item_of(group, position)
  local packed = redis.call('HGET', group.items, position)
  return packed and opened(packed)
end

local function keep_item(group, position, item)
  redis.call('HSET', group.items, position, cmsgpack.pack(item))
end

local function new_item(replay, copied, dropped)
  return {0, 0, 0, '', replay, copied and 1 or 0, '', 0, 0, dropped and 1 or 0, 0}
end

-- Who waits for an ordered group may have found it in other hands: they hear when those are empty.
local function let_go(s, group)
  if group.ordered and not group.paused and redis.call('ZCARD', group.leased) == 0 then
    s.bells[group.bell] = true
  end
end

-- What leases and delays have given back by now is ready again.
local function come_back(s, group)
  for _, from in ipairs({group.leased, group.delayed}) do
    for _, position in ipairs(redis.call('ZRANGEBYSCORE', from, '-inf', precise(s.now), 'LIMIT', 0, STEP)) do
      redis.call('ZREM', from, position)
      give(s, group, tonumber(position))
      let_go(s, group)
    end
  end
end
