-- Handing out: leases, and what is said of them while they last.

-- The oldest positions that wait, `below` a place if the log is still gone through, and which of them come from
-- `fresh`; nothing is taken yet.
local function oldest(group, limit, below)
  local ready = redis.call('ZRANGEBYSCORE', group.ready, '-inf', below and '(' .. below or '+inf', 'LIMIT', 0, limit)
  local fresh = redis.call('XRANGE', group.fresh, '-', below and '(' .. below .. '-0' or '+', 'COUNT', limit)
  local found, first, r, f = {}, {}, 1, 1
  while #found < limit and (ready[r] or fresh[f]) do
    local old, new = ready[r], fresh[f] and string.sub(fresh[f][1], 1, -3)
    if new and not (old and tonumber(old) < tonumber(new)) then
      found[#found + 1], first[new], f = new, true, f + 1
    else
      found[#found + 1], r = old, r + 1
    end
  end
  return found, first
end

-- The items of those that have one; what is fresh has none.
local function items_of(group, members, first)
  local asked, items = {}, {}
  for _, member in ipairs(members) do
    if not first[member] then
      asked[#asked + 1] = member
    end
  end
  for place, packed in ipairs(#asked > 0 and redis.call('HMGET', group.items, unpack(asked)) or {}) do
    items[asked[place]] = packed and opened(packed) or nil
  end
  return items
end

-- Reads entries ahead, as the log has them, a few at a time because each may be large.
local AHEAD = 32

local function ahead(s, members, from)
  local low, high = members[from], members[math.min(from + AHEAD - 1, #members)]
  local found = {}
  if tonumber(high) - tonumber(low) < 2 * AHEAD then
    for _, raw in ipairs(redis.call('XRANGE', key(s.ns, 'log'), low .. '-0', high .. '-0')) do
      found[string.sub(raw[1], 1, -3)] = raw[2]
    end
  end
  return found
end

-- What leaves the queue and is leased by one call, to be written in a few commands.
local function taking(group, token, until_when)
  return {group = group, token = token, until_when = until_when, ready = {}, items = {}, leases = {}}
end

local function take(t, member, first)
  if first then
    t.upto = member -- the oldest are taken, so all before it are
  else
    t.ready[#t.ready + 1] = member
  end
end

local function lease(t, member, item)
  if item then
    item[DELIVERIES], item[TOKEN] = item[DELIVERIES] + 1, t.token
  end
  local at = #t.items
  t.items[at + 1], t.items[at + 2] = member, item and cmsgpack.pack(item) or t.token
  t.leases[at + 1], t.leases[at + 2] = t.until_when, member
end

local function write_down(t)
  if t.upto then
    redis.call('XTRIM', t.group.fresh, 'MINID', '=', text(tonumber(t.upto) + 1) .. '-0')
  end
  if #t.ready > 0 then
    redis.call('ZREM', t.group.ready, unpack(t.ready))
  end
  if #t.items > 0 then
    redis.call('HSET', t.group.items, unpack(t.items))
    redis.call('ZADD', t.group.leased, unpack(t.leases))
  end
end

-- Its entry as the group is to see it: subject, time, headers, body, first body. `raw` is what was read ahead.
local function entry_of(s, group, member, item, raw)
  if item and item[COPIED] == 1 then
    return cmsgpack.unpack(redis.call('HGET', group.copies, member))
  elseif raw then
    return {raw[2], raw[4], raw[6], raw[8]}
  end
  local entry = logged(s, tonumber(member))
  return entry and {entry.subject, entry.time, entry.headers, entry.body}
end

-- Whether anything of the group is delayed, or in the hands of anybody but `holder`.
local function elsewhere(group, holder)
  if redis.call('ZCARD', group.delayed) > 0 then
    return true
  end
  for _, member in ipairs(redis.call('ZRANGE', group.leased, 0, -1)) do
    local item = item_of(group, member)
    if item and string.match(item[TOKEN], '^[^:]*') ~= holder then
      return true
    end
  end
  return false
end

-- Seconds until something comes back to the group by itself.
local function rest(s, group)
  local soonest = math.huge
  for _, from in ipairs({group.leased, group.delayed, key(s.ns, 'later')}) do
    local first = redis.call('ZRANGE', from, 0, 0, 'WITHSCORES')[2]
    soonest = math.min(soonest, first and tonumber(first) or math.huge)
  end
  return soonest < math.huge and precise(math.max(soonest - s.now, 0)) or ''
end

-- A delivery as it is told: position, subject, time, bytes of the headers and of the body; of what has an item also
-- deliveries, attempts, crashes, replay, whether it was dropped, how often it was handed back.
local function told(member, entry, item)
  local position, subject, time = tonumber(member), entry[1], tonumber(entry[2])
  if not item then
    return {position, subject, time, #entry[3], #entry[4]}
  end
  return {
    position, subject, time, #entry[3], #entry[4],
    item[DELIVERIES], item[ATTEMPTS], item[CRASHES], item[REPLAY], item[DROPPED], item[RETURNED],
  }
end

-- group, limit, token, bytes: its lease, seconds until more may come, positions that are lost, deliveries (packed, so
-- that a client reads them as one value), and the headers and bodies of all of them, one behind the other
offer('pull', {'allow-oom'}, function(s, args)
  fall_due(s)
  local group, token, room = group_of(s, args[3]), args[5], tonumber(args[6])
  local limit = math.min(tonumber(args[4]), STEP)
  if group.paused or redis.call('EXISTS', key(s.ns, 'void:' .. token)) == 1 then
    return {precise(group.lease), '', {}, '', ''}
  end
  come_back(s, group)
  if group.ordered and elsewhere(group, string.match(token, '^[^:]*')) then
    return {precise(group.lease), rest(s, group), {}, '', ''}
  end
  local below = fill_step(s, group) and redis.call('HGET', group.fill, 'next')
  local members, first = oldest(group, limit, below)
  local items, t = items_of(group, members, first), taking(group, token, precise(s.now + group.lease))
  local given, bytes, lost, size, raw = {}, {}, {}, 0, {}
  for place, member in ipairs(members) do
    if size > room then
      break
    end
    if place % AHEAD == 1 then
      raw = ahead(s, members, place)
    end
    local item = items[member]
    local entry = entry_of(s, group, member, item, raw[member])
    take(t, member, first[member])
    if entry then
      lease(t, member, item)
      given[#given + 1] = told(member, entry, item)
      bytes[#bytes + 1], bytes[#bytes + 2] = entry[3], entry[4]
      size = size + #entry[3] + #entry[4]
    else
      redis.call('HDEL', group.items, member)
      lost[#lost + 1] = tonumber(member)
    end
  end
  write_down(t)
  s.bells[group.bell] = nil
  return {precise(group.lease), below and '0' or rest(s, group), lost, cmsgpack.pack(given), table.concat(bytes)}
end)

-- The item if the token is that of its newest lease.
local function held(s, name, member, token)
  local group = groups_of(s).groups[name]
  local item = group and item_of(group, member)
  if item and item[TOKEN] == token and token ~= '' then
    return group, item
  end
end

-- group, position, token, crashes before
offer('begin', {'allow-oom'}, function(s, args)
  local group, item = held(s, args[3], args[4], args[5])
  if not group then
    refuse('CONFLICT', 'message ' .. args[4] .. ' is no longer in the hands of this reader')
  end
  item[CRASHES] = tonumber(args[6]) + 1
  keep_item(group, args[4], item)
  return 1
end)

-- for each: group, position, token. Answers the lease of each, or '' for what is lost.
offer('extend', {'allow-oom'}, function(s, args)
  local answers = {}
  for place = 3, #args, 3 do
    local group = held(s, args[place], args[place + 1], args[place + 2])
    local until_when = group and redis.call('ZSCORE', group.leased, args[place + 1])
    if until_when and tonumber(until_when) > s.now then
      redis.call('ZADD', group.leased, precise(s.now + group.lease), args[place + 1])
      answers[#answers + 1] = precise(group.lease)
    else
      answers[#answers + 1] = ''
    end
  end
  return answers
end)

-- group, token: what was leased under a token whose answer never arrived goes back at once, and should that question
-- come in only now, it gets nothing
offer('unpull', {'allow-oom'}, function(s, args)
  local group = groups_of(s).groups[args[3]]
  redis.call('SET', key(s.ns, 'void:' .. args[4]), '', 'PX', ANSWERED)
  for _, member in ipairs(group and redis.call('ZRANGE', group.leased, 0, -1) or {}) do
    local item = item_of(group, member)
    if item and item[TOKEN] == args[4] then
      item[TOKEN] = ''
      keep_item(group, member, item)
      redis.call('ZREM', group.leased, member)
      give(s, group, tonumber(member))
      let_go(s, group)
    end
  end
  return 0
end)
