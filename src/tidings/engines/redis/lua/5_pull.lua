-- Handing out: leases, and what is said of them while they last.

-- The oldest positions that wait, `below` a place if the log is still gone through, and whether each comes from
-- `fresh`; nothing is taken yet.
local function oldest(group, limit, below)
  local ready = redis.call('ZRANGEBYSCORE', group.ready, '-inf', below and '(' .. below or '+inf', 'LIMIT', 0, limit)
  local fresh = redis.call('XRANGE', group.fresh, '-', below and '(' .. below .. '-0' or '+', 'COUNT', limit)
  local found, r, f = {}, 1, 1
  while #found < limit and (ready[r] or fresh[f]) do
    local new = fresh[f] and position_of(fresh[f])
    if new and not (ready[r] and tonumber(ready[r]) < new) then
      found[#found + 1] = {text(new), true}
      f = f + 1
    else
      found[#found + 1] = {ready[r], false}
      r = r + 1
    end
  end
  return found
end

-- What was chosen leaves the queue and is leased: `changes` are pairs for `items`, then for `leased`.
local function take_out(group, chosen, changes, until_when)
  local fresh, ready, leases = {}, {}, {}
  for _, found in ipairs(chosen) do
    if found[2] then
      fresh[#fresh + 1] = found[1] .. '-0'
    else
      ready[#ready + 1] = found[1]
    end
  end
  if #fresh > 0 then
    redis.call('XDEL', group.fresh, unpack(fresh))
  end
  if #ready > 0 then
    redis.call('ZREM', group.ready, unpack(ready))
  end
  for place = 1, #changes, 2 do
    leases[place], leases[place + 1] = until_when, changes[place]
  end
  if #changes > 0 then
    redis.call('HSET', group.items, unpack(changes))
    redis.call('ZADD', group.leased, unpack(leases))
  end
end

-- Reads entries ahead, as the log has them, a few at a time because each may be large.
local AHEAD = 32

local function ahead(s, chosen, from)
  local first, last = tonumber(chosen[from][1]), tonumber(chosen[math.min(from + AHEAD - 1, #chosen)][1])
  local found = {}
  if last - first < 2 * AHEAD then
    for _, raw in ipairs(redis.call('XRANGE', key(s.ns, 'log'), text(first) .. '-0', text(last) .. '-0')) do
      found[text(position_of(raw))] = raw[2]
    end
  end
  return found
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

-- group, limit, token, bytes: its lease, seconds until more may come, positions that are lost, deliveries
offer('pull', {'allow-oom'}, function(s, args)
  fall_due(s)
  local group, token, room = group_of(s, args[3]), args[5], tonumber(args[6])
  local limit = math.min(tonumber(args[4]), STEP)
  if group.paused or redis.call('EXISTS', key(s.ns, 'void:' .. token)) == 1 then
    return {precise(group.lease), '', {}, {}}
  end
  come_back(s, group)
  if group.ordered and elsewhere(group, string.match(token, '^[^:]*')) then
    return {precise(group.lease), rest(s, group), {}, {}}
  end
  local below = fill_step(s, group) and redis.call('HGET', group.fill, 'next')
  local found, given, lost, chosen, changes, size = oldest(group, limit, below), {}, {}, {}, {}, 0
  local members, raw = {}, {}
  for place, each in ipairs(found) do
    members[place] = each[1]
  end
  local items = #found > 0 and redis.call('HMGET', group.items, unpack(members))
  for place, member in ipairs(members) do
    if size > room then
      break
    end
    if place % AHEAD == 1 then
      raw = ahead(s, found, place)
    end
    local item = items[place] and cmsgpack.unpack(items[place]) or new_item('')
    local entry = entry_of(s, group, member, item, raw[member])
    chosen[#chosen + 1] = found[place]
    if entry then
      item[DELIVERIES], item[TOKEN] = item[DELIVERIES] + 1, token
      local at = #changes
      changes[at + 1], changes[at + 2] = member, cmsgpack.pack(item)
      size = size + #entry[3] + #entry[4]
      given[#given + 1] = {
        tonumber(member), entry[1], entry[2], entry[3], entry[4],
        item[DELIVERIES], item[ATTEMPTS], item[CRASHES], item[REPLAY], item[DROPPED],
      }
    else
      redis.call('HDEL', group.items, member)
      lost[#lost + 1] = tonumber(member)
    end
  end
  take_out(group, chosen, changes, precise(s.now + group.lease))
  s.bells[group.bell] = nil
  return {precise(group.lease), below and '0' or rest(s, group), lost, given}
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
