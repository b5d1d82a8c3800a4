BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0005');
CREATE TABLE answers (
	id VARCHAR(64) NOT NULL, 
	at DATETIME NOT NULL, 
	route VARCHAR(64) NOT NULL, 
	asked VARCHAR(160), 
	tenant VARCHAR(63), 
	"key" VARCHAR(16), 
	patch VARCHAR(96), 
	adapter VARCHAR(96), 
	mode VARCHAR(16) NOT NULL, 
	arm VARCHAR(16), 
	rollout VARCHAR(63), 
	reason VARCHAR(32) NOT NULL, 
	subjects TEXT, 
	groups TEXT, 
	ike_tokens INTEGER NOT NULL, 
	status INTEGER, 
	ended VARCHAR(16), 
	prompt_tokens INTEGER, 
	completion_tokens INTEGER, 
	seconds FLOAT, 
	first_token_seconds FLOAT, 
	router_seconds FLOAT NOT NULL, 
	generation INTEGER, 
	server VARCHAR(128) NOT NULL, 
	prompt TEXT, 
	PRIMARY KEY (id)
);
CREATE TABLE audit (
	number INTEGER NOT NULL, 
	at VARCHAR(32) NOT NULL, 
	who VARCHAR(128) NOT NULL, 
	what VARCHAR(64) NOT NULL, 
	tenant VARCHAR(63), 
	why TEXT NOT NULL, 
	old TEXT NOT NULL, 
	new TEXT NOT NULL, 
	previous VARCHAR(64) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (previous), 
	UNIQUE (digest)
);
INSERT INTO "audit" VALUES(1,'2026-11-30T00:36:24.513332+00:00','root','patch.save',NULL,'','null','{"adapter_id":1,"digest":"4c4b173ebdf7fe9dfc8c079de0784e60","name":"capital@4c4b173ebdf7fe9dfc8c079de0784e60","patch":"capital","reason":"","saved_at":"2026-11-30T00:36:24.511445+00:00","status":"ungated","valid_until":null}','0000000000000000000000000000000000000000000000000000000000000000','f38a303cdca493534bd2c64b00f86b4cad88731670f0b411d2b559ed73491269');
INSERT INTO "audit" VALUES(2,'2026-11-30T00:36:24.598327+00:00','root','patch.save',NULL,'','null','{"adapter_id":2,"digest":"0308042015ffcac273d9f9ff74ca81e6","name":"currency@0308042015ffcac273d9f9ff74ca81e6","patch":"currency","reason":"","saved_at":"2026-11-30T00:36:24.597678+00:00","status":"ungated","valid_until":null}','f38a303cdca493534bd2c64b00f86b4cad88731670f0b411d2b559ed73491269','abffcab5543ffeed35341eec4ab857b853eb1cdcd0694afea89a540c21e816e2');
INSERT INTO "audit" VALUES(3,'2026-11-30T00:36:24.635495+00:00','ann','tenant.create','acme','','null','{"active":null,"created_at":"2026-11-30T00:36:24.635073+00:00","name":"acme","valid_until":null}','abffcab5543ffeed35341eec4ab857b853eb1cdcd0694afea89a540c21e816e2','6107ca1c4677655a25dad398da154c6af65dd1a70b0c92bbd1de703de21822d3');
INSERT INTO "audit" VALUES(4,'2026-11-30T00:36:24.652435+00:00','ann','tenant.create','globex','','null','{"active":null,"created_at":"2026-11-30T00:36:24.652190+00:00","name":"globex","valid_until":null}','6107ca1c4677655a25dad398da154c6af65dd1a70b0c92bbd1de703de21822d3','3f29a89e4feaf05a0d7ff62d2e9a1848c491862340895b23beb204d51daf3dd9');
INSERT INTO "audit" VALUES(5,'2026-11-30T00:36:24.672171+00:00','ann','tenant.publish','acme','first','{"active":null,"valid_until":null}','{"active":"capital@4c4b173ebdf7fe9dfc8c079de0784e60","gate":{"override":true,"reason":"","status":"ungated"},"valid_until":null}','3f29a89e4feaf05a0d7ff62d2e9a1848c491862340895b23beb204d51daf3dd9','1df6e1d7a774540f0197c51e5b84f46fc7c00f0f9a1aa09d0fbf4a0b4121e8d0');
INSERT INTO "audit" VALUES(6,'2026-11-30T00:36:24.690203+00:00','ann','tenant.publish','globex','first','{"active":null,"valid_until":null}','{"active":"currency@0308042015ffcac273d9f9ff74ca81e6","gate":{"override":true,"reason":"","status":"ungated"},"valid_until":null}','1df6e1d7a774540f0197c51e5b84f46fc7c00f0f9a1aa09d0fbf4a0b4121e8d0','a9af636608a2fb158460bc514927c10d3fb2e31f00af35097d4a26513d878f29');
INSERT INTO "audit" VALUES(7,'2026-11-30T00:36:24.706242+00:00','ann','tenant.publish','globex','second','{"active":"currency@0308042015ffcac273d9f9ff74ca81e6","valid_until":null}','{"active":"capital@4c4b173ebdf7fe9dfc8c079de0784e60","gate":{"override":true,"reason":"","status":"ungated"},"valid_until":null}','a9af636608a2fb158460bc514927c10d3fb2e31f00af35097d4a26513d878f29','fd4d41ba082fbb2b99ea3f70815a50e4115136aab14bb610e515a80eccafcc4a');
INSERT INTO "audit" VALUES(8,'2026-11-30T00:36:24.721651+00:00','ann','tenant.rollback','globex','back','{"active":"capital@4c4b173ebdf7fe9dfc8c079de0784e60","valid_until":null}','{"active":"currency@0308042015ffcac273d9f9ff74ca81e6","valid_until":null}','fd4d41ba082fbb2b99ea3f70815a50e4115136aab14bb610e515a80eccafcc4a','fc095f67e617d322e9b190a98d66183813c846b136e7ba6141bb10d58fe89088');
INSERT INTO "audit" VALUES(9,'2026-11-30T00:36:24.726925+00:00','ann','key.create','acme','','null','{"created_at":"2026-11-30T00:36:24.725341+00:00","created_by":"ann","expires_at":null,"id":"e796ecf5ceee","label":"laptop","revoked_at":null,"revoked_by":null,"revoked_why":null,"rights":["serve","base"],"tenant":"acme"}','fc095f67e617d322e9b190a98d66183813c846b136e7ba6141bb10d58fe89088','0094d34d9fc1534ac58a206011b0204c18117a0cdda9c543d68c157cf7b60867');
CREATE TABLE exposures (
	id VARCHAR(64) NOT NULL, 
	rollout VARCHAR(63) NOT NULL, 
	tenant VARCHAR(63) NOT NULL, 
	side VARCHAR(16) NOT NULL, 
	reason VARCHAR(32) NOT NULL, 
	unit VARCHAR(32), 
	at DATETIME NOT NULL, 
	failed BOOLEAN NOT NULL, 
	prompt_tokens INTEGER, 
	completion_tokens INTEGER, 
	seconds FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(rollout) REFERENCES rollouts (name)
);
CREATE TABLE generation (
	id INTEGER NOT NULL, 
	value INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "generation" VALUES(1,9);
CREATE TABLE keys (
	id VARCHAR(16) NOT NULL, 
	tenant VARCHAR(63), 
	rights VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	label VARCHAR(128) NOT NULL, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR(128) NOT NULL, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	revoked_by VARCHAR(128), 
	revoked_why TEXT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "keys" VALUES('e796ecf5ceee','acme','serve base','0af2cb9f3a4d7eb979fa87d964b346281adc743f7e4821670493b87d3c462d03','laptop','2026-11-30 00:36:24.725341','ann',NULL,NULL,NULL,NULL);
CREATE TABLE outcomes (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	exposure VARCHAR(64) NOT NULL, 
	metric VARCHAR(63) NOT NULL, 
	value FLOAT NOT NULL, 
	at DATETIME NOT NULL, 
	CONSTRAINT outcomes_once UNIQUE (exposure, metric), 
	FOREIGN KEY(exposure) REFERENCES exposures (id)
);
CREATE TABLE patches (
	adapter_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name VARCHAR(96) NOT NULL, 
	patch VARCHAR(63) NOT NULL, 
	digest VARCHAR(32) NOT NULL, 
	saved_at DATETIME NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, valid_until DATETIME, retired INTEGER, 
	UNIQUE (name)
);
INSERT INTO "patches" VALUES(1,'capital@4c4b173ebdf7fe9dfc8c079de0784e60','capital','4c4b173ebdf7fe9dfc8c079de0784e60','2026-11-30 00:36:24.511445','ungated','',NULL,NULL);
INSERT INTO "patches" VALUES(2,'currency@0308042015ffcac273d9f9ff74ca81e6','currency','0308042015ffcac273d9f9ff74ca81e6','2026-11-30 00:36:24.597678','ungated','',NULL,NULL);
CREATE TABLE publications (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	tenant VARCHAR(63) NOT NULL, 
	name VARCHAR(96) NOT NULL, 
	at DATETIME NOT NULL, 
	"by" VARCHAR(128) NOT NULL, 
	why TEXT NOT NULL, 
	override BOOLEAN NOT NULL, 
	rolled_back_at DATETIME, 
	rolled_back_by VARCHAR(128), 
	rolled_back_why TEXT, valid_until DATETIME, 
	FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "publications" VALUES(1,'acme','capital@4c4b173ebdf7fe9dfc8c079de0784e60','2026-11-30 00:36:24.671567','ann','first',1,NULL,NULL,NULL,NULL);
INSERT INTO "publications" VALUES(2,'globex','currency@0308042015ffcac273d9f9ff74ca81e6','2026-11-30 00:36:24.689871','ann','first',1,NULL,NULL,NULL,NULL);
INSERT INTO "publications" VALUES(3,'globex','capital@4c4b173ebdf7fe9dfc8c079de0784e60','2026-11-30 00:36:24.705969','ann','second',1,'2026-11-30 00:36:24.719634','ann','back',NULL);
CREATE TABLE rollouts (
	name VARCHAR(63) NOT NULL, 
	tenant VARCHAR(63) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	share INTEGER NOT NULL, 
	closed BOOLEAN NOT NULL, 
	settings TEXT NOT NULL, 
	created_at DATETIME NOT NULL, 
	changed_at DATETIME NOT NULL, 
	PRIMARY KEY (name), 
	FOREIGN KEY(tenant) REFERENCES tenants (name)
);
CREATE TABLE servers (
	id VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	drained INTEGER NOT NULL, 
	seen FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE tenants (
	name VARCHAR(63) NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "tenants" VALUES('acme','2026-11-30 00:36:24.635073');
INSERT INTO "tenants" VALUES('globex','2026-11-30 00:36:24.652190');
CREATE INDEX ix_patches_patch ON patches (patch);
CREATE INDEX publications_by_tenant ON publications (tenant, id);
CREATE INDEX audit_by_tenant ON audit (tenant, number);
CREATE TRIGGER audit_refuses_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'rows of audit are never changed or removed'); END;
CREATE TRIGGER audit_refuses_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'rows of audit are never changed or removed'); END;
CREATE INDEX rollouts_by_tenant ON rollouts (tenant, closed);
CREATE INDEX exposures_by_rollout ON exposures (rollout, side);
CREATE INDEX answers_by_time ON answers (at);
CREATE INDEX answers_by_tenant ON answers (tenant, at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('patches',2);
INSERT INTO "sqlite_sequence" VALUES('publications',3);
COMMIT;
