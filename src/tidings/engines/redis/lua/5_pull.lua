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

local function take_out(group, member, fresh)
  if fresh then
    redis.call('XDEL', group.fresh, member .. '-0')
  else
    redis.call('ZREM', group.ready, member)
  end
end

-- Its entry as the group is to see it: subject, time, headers, body, first body.
local function entry_of(s, group, member, item)
  if item and item[COPIED] == 1 then
    return cmsgpack.unpack(redis.call('HGET', group.copies, member))
  end
  local entry = logged(s, tonumber(member))
  return entry and {entry.subject, entry.time, entry.headers, entry.body}
end

local function lease(s, group, member, token, item)
  item = item or new_item('')
  item[DELIVERIES] = item[DELIVERIES] + 1
  item[TOKEN] = token
  keep_item(group, member, item)
  redis.call('ZADD', group.leased, precise(s.now + group.lease), member)
  return item
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
  local group, limit, token, room = group_of(s, args[3]), tonumber(args[4]), args[5], tonumber(args[6])
  if group.paused or redis.call('EXISTS', key(s.ns, 'void:' .. token)) == 1 then
    return {precise(group.lease), '', {}, {}}
  end
  come_back(s, group)
  if group.ordered and elsewhere(group, string.match(token, '^[^:]*')) then
    return {precise(group.lease), rest(s, group), {}, {}}
  end
  local below = fill_step(s, group) and redis.call('HGET', group.fill, 'next')
  local given, lost, size = {}, {}, 0
  for _, found in ipairs(oldest(group, limit, below)) do
    if size > room then
      break
    end
    local member = found[1]
    local item = item_of(group, member)
    local entry = entry_of(s, group, member, item)
    take_out(group, member, found[2])
    if entry then
      item = lease(s, group, member, token, item)
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
