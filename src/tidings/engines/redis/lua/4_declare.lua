-- Declaring groups. A claim that is new to a group reaches back into the log; a long log is gone through in steps,
-- and until that is over the group is handed only what stands before the place that was reached.

local function fill_step(s, group)
  local fill = redis.call('HMGET', group.fill, 'next', 'upto', 'had')
  if not fill[1] then
    return false
  end
  local from, upto, had = tonumber(fill[1]), tonumber(fill[2]), claims_of(fill[3])
  local page = redis.call('XRANGE', key(s.ns, 'log'), text(from) .. '-0', text(upto) .. '-0', 'COUNT', STEP)
  for _, raw in ipairs(page) do
    local position, subject = position_of(raw), fields(raw).subject
    if wants(group.claims, subject, position) and not wants(had, subject, position) then
      if not place_of(group, position) and redis.call('HEXISTS', group.letters, text(position)) == 0 then
        give(s, group, position)
      end
    end
  end
  if #page < STEP then
    redis.call('DEL', group.fill)
    return false
  end
  redis.call('HSET', group.fill, 'next', text(position_of(page[#page]) + 1))
  return true
end

local function add_claims(s, group, claims)
  while fill_step(s, group) do end
  local lines, first = split(group.lines, '\n'), nil
  local had = {}
  for _, line in ipairs(lines) do
    had[line] = true
  end
  for _, line in ipairs(split(claims, '\n')) do
    if not had[line] then
      lines[#lines + 1] = line
      first = math.min(first or math.huge, cjson.decode(line).since)
    end
  end
  local last = tonumber(redis.call('HGET', key(s.ns, 'meta'), 'last'))
  if first and first <= last then
    redis.call('HSET', group.fill, 'next', text(math.max(first, 1)), 'upto', text(last), 'had', group.lines)
  end
  return table.concat(lines, '\n')
end

-- name, lease, paused, ordered, claims (a line of JSON each): whether the log has still to be gone through
offer('declare', {'allow-oom'}, function(s, args)
  fall_due(s)
  local name, lease, paused, ordered, claims = unpack(args, 3, 7)
  local group = groups_of(s).groups[name]
  if not group then
    group = queue_of(s.ns, name)
    group.lines = ''
    group.claims = {}
    redis.call('SADD', key(s.ns, 'groups'), name)
  end
  if tonumber(lease) <= 0 then
    lease = group.lease or 30
  end
  local lines = add_claims(s, group, claims)
  local same = lines == group.lines and group.paused == (paused == '1') and group.lease == tonumber(lease)
    and group.ordered == (ordered == '1')
  if not same then
    redis.call('HSET', group.shape, 'lease', lease, 'paused', paused, 'ordered', ordered, 'claims', lines)
    redis.call('HSET', key(s.ns, 'meta'), 'version', args[1])
    s.version = args[1]
  end
  local after = group_of(s, name)
  local more = fill_step(s, after)
  if group.paused and not after.paused then
    s.bells[after.bell] = true
  end
  return more and 1 or 0
end)

offer('fill', {'allow-oom'}, function(s, args)
  local group = groups_of(s).groups[args[3]]
  return group and fill_step(s, group) and 1 or 0
end)

offer('forget', {'allow-oom'}, function(s, args)
  local group = groups_of(s).groups[args[3]]
  if group then
    s.bells[group.bell] = true
    for _, position in ipairs(redis.call('ZRANGE', group.dead, 0, -1)) do
      redis.call('ZREM', key(s.ns, 'dead'), position .. '/' .. group.name)
    end
    redis.call('UNLINK', group.shape, group.fill, group.fresh, group.ready, group.leased, group.delayed,
      group.parked, group.items, group.copies, group.dead, group.letters)
    redis.call('SREM', key(s.ns, 'groups'), group.name)
    redis.call('HSET', key(s.ns, 'meta'), 'version', args[1])
  end
  return 0
end)
